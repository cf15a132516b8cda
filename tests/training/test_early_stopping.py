from sbi_jeffreys.training.early_stopping import EarlyStopping


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


def test_its_state_is_the_best_loss_and_the_count():
    stopping, other = EarlyStopping(), EarlyStopping()
    for loss in (1.0, 2.0):
        stopping.update(loss)
    other.patience = 7
    other.load_state_dict(stopping.state_dict())
    assert (other.best_loss, other.epochs_since_best, other.patience) == (1.0, 1, 7)
