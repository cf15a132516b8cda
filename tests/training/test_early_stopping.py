import pytest

from sbi_jeffreys.training.early_stopping import MIN_GAIN, EarlyStopping


def test_stops_after_as_many_epochs_without_a_lower_loss_as_its_patience():
    stopping = EarlyStopping()
    stopping.patience = 2
    seen = []
    for loss in (3.0, 1.0, 1.0, 2.0):
        assert not stopping.stalled
        seen.append(stopping.update(loss))
    assert seen == [True, True, False, False]
    assert stopping.stalled
    assert (stopping.best_loss, stopping.epochs_since_best) == (1.0, 2)


def test_only_a_loss_below_the_given_one_is_better():
    stopping = EarlyStopping(best_loss=1.0)
    assert not stopping.update(1.5)
    assert stopping.best_loss == 1.0
    assert stopping.update(0.5)


@pytest.mark.parametrize(("gain", "stalls"), [(0.9 * MIN_GAIN, True), (0.02, False)])
def test_stops_at_the_end_of_a_cycle_that_hardly_lowered_the_loss(gain, stalls):
    stopping = EarlyStopping()
    assert stopping.patience is None
    for loss in (3.0, 4.0):
        stopping.update(loss)
    stopping.end_cycle()
    assert not stopping.stalled  # the first cycle always gains
    for loss in (5.0, 3.0 - gain, 3.5):
        stopping.update(loss)
        assert not stopping.stalled  # only the end of a cycle counts
    stopping.end_cycle()
    assert stopping.stalled == stalls
    assert stopping.loss_before == stopping.best_loss == 3.0 - gain


def test_gains_of_several_cycles_are_not_added_up():
    stopping = EarlyStopping()
    for loss, stalls in ((1.0, False), (0.98, False), (0.974, True), (0.95, False)):
        stopping.update(loss)
        stopping.end_cycle()
        assert stopping.stalled == stalls


def test_with_a_patience_cycles_do_not_count():
    stopping = EarlyStopping()
    stopping.patience = 2
    for loss in (1.0, 1.0):
        stopping.update(loss)
        stopping.end_cycle()
    assert not stopping.stalled
    stopping.patience = None
    assert stopping.stalled


def test_its_state_is_all_but_the_patience():
    stopping, other = EarlyStopping(), EarlyStopping()
    for loss in (1.0, 2.0):
        stopping.update(loss)
        stopping.end_cycle()
    other.patience = 7
    other.load_state_dict(stopping.state_dict())
    assert (other.best_loss, other.epochs_since_best, other.patience) == (1.0, 1, 7)
    assert (other.loss_before, other.cycle_gained) == (1.0, False)
