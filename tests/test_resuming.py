"""Training further, training again, and training after an error."""

import pickle

import pytest
from torch import nn

from tests.small_trainings import (
    BOX,
    FROZEN,
    make_trainer,
    quick,
    same_weights,
    simulate,
)


@pytest.mark.parametrize("pool", [True, False])
def test_resuming_is_exact_also_through_a_pickle(pool):
    """With the pool, the flow keeps what it gained by following on the way."""
    whole = make_trainer(pool=pool)
    want = quick(whole, max_num_epochs=6)
    parts = make_trainer(pool=pool)
    quick(parts, max_num_epochs=2)
    with pytest.warns(UserWarning, match="pickled"):
        parts = pickle.loads(pickle.dumps(parts))
    got = quick(parts, max_num_epochs=6, resume_training=True)
    assert same_weights(got, want) or pool
    assert same_weights(parts.latest, whole.latest)
    energies = (trainer._fit.networks.energy for trainer in (parts, whole))
    assert same_weights(*energies)
    assert parts.summary["validation_loss"] == whole.summary["validation_loss"]


def test_more_simulations_continue_from_the_present_weights():
    trainer = make_trainer()
    flow = quick(trainer)
    theta = BOX.sample((100,))
    trainer.append_simulations(theta, simulate(theta))
    with pytest.raises(ValueError, match="already been trained"):
        trainer.train()
    assert quick(trainer, force_first_round_loss=True) is flow
    afresh = {"force_first_round_loss": True, "retrain_from_scratch": True}
    assert quick(trainer, **afresh) is not flow


def test_resuming_waits_as_long_as_it_is_told_to():
    """The held-out loss is best after the first epoch; then it stalls."""
    trainer = make_trainer()
    quick(trainer, stop_after_epochs=200, **FROZEN)
    trainer.train(resume_training=True, stop_after_epochs=8, **FROZEN)
    assert trainer.epoch == 9
    cycles = trainer._fit.training.cycles
    rates = [4e-3 * cycles.factor(epoch) for epoch in range(9)]
    assert trainer.summary["learning_rate"] == pytest.approx(rates)


def test_a_cycle_goes_on_where_it_stopped(monkeypatch):
    """The cycles have three and six epochs. Without a gain, the second is the last."""
    monkeypatch.setattr("sbi_jeffreys.training.schedule.MOST_EPOCHS", 3)
    for stops in ((), (1, 2), (3, 5), (8,)):
        trainer = make_trainer(pool=False)
        for number, most in enumerate(stops):
            quick(trainer, max_num_epochs=most, resume_training=number > 0, **FROZEN)
        trainer.train(resume_training=bool(stops), **FROZEN)
        assert trainer.epoch == 9
        trainer.train(resume_training=True, **FROZEN)
        assert trainer.epoch == 9


def test_a_training_that_stalls_in_the_last_epoch_it_may_train_is_not_warned_of(recwarn):
    arguments = {"stop_after_epochs": 2, **FROZEN}
    trainer = make_trainer()
    trainer.train(**arguments)
    again = make_trainer()
    again.train(**arguments, max_num_epochs=trainer.epoch)
    assert again.epoch == trainer.epoch
    assert not [w for w in recwarn if "max_num_epochs" in str(w.message)]


def test_training_again_after_a_first_epoch_that_diverged():
    class Net(nn.Module):
        factor = float("nan")

        def forward(self, input, condition):
            return self.factor * input.sum(-1)

    net = Net()
    trainer = make_trainer(energy_net=net)
    with pytest.raises(FloatingPointError, match="step 1 of epoch 1"):
        trainer.train()
    net.factor = 0.0
    quick(trainer)


def test_resuming_and_starting_afresh_exclude_each_other(trained):
    with pytest.raises(ValueError, match="`resume_training`"):
        trained.train(resume_training=True, retrain_from_scratch=True)


def test_starting_afresh_takes_all_simulations_and_resuming_warns_that_it_does_not():
    trainer = make_trainer()
    quick(trainer)
    theta = BOX.sample((30,))
    trainer.append_simulations(theta, simulate(theta))
    with pytest.warns(UserWarning, match=r"30 .* not used"):
        flow = quick(trainer, max_num_epochs=3, resume_training=True)
    assert trainer.build_posterior().num_simulations == 120
    before = trainer.summary["epochs_trained"][-1]
    assert quick(trainer, retrain_from_scratch=True) is not flow
    assert trainer.build_posterior().num_simulations == 150
    assert trainer.summary["epochs_trained"][-1] < before


def test_without_training_there_is_nothing_to_resume():
    with pytest.raises(RuntimeError, match="no training to resume"):
        make_trainer().train(resume_training=True)
