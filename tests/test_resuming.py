"""Training further, training again, and training after an error."""

import pickle

import pytest
import torch
from torch import nn

from sbi_jeffreys.training.loop import JeffreysTraining
from tests.conftest import fit_in_few_steps
from tests.small_trainings import (
    BOX,
    FROZEN,
    interrupted_at,
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
    parts = as_pickled(parts)
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


NO_BATCH = {"dataloader_kwargs": {"batch_size": 500, "drop_last": True}}


def as_pickled(trainer):
    with pytest.warns(UserWarning, match="pickled"):
        return pickle.loads(pickle.dumps(trainer))


def state_of(trainer, theta, x):
    """What a user can see of a training: densities, split, record."""
    posteriors = (
        trainer.build_posterior(sample_with=how) for how in ("direct", "energy")
    )
    return (
        [posterior.potential(theta, x=x[:1]).tolist() for posterior in posteriors],
        [
            posterior.tolist()
            for posterior in (trainer.train_indices, trainer.val_indices)
        ],
        {name: list(values) for name, values in trainer.summary.items()},
        trainer.epoch,
        trainer.latest.flow.state_dict().keys(),
    )


FAILURES = {
    "no batch": (NO_BATCH, ValueError, None),
    "first epoch": ({}, KeyboardInterrupt, ("_run_epoch", 1)),
    "second epoch": ({}, MemoryError, ("_run_epoch", 2)),
    "diverges": ({}, FloatingPointError, ("_run_epoch", 1)),
    "building": ({}, MemoryError, ("__init__", 1)),
    "following": ({}, MemoryError, ("follow", 2)),
}


@pytest.fixture(scope="module")
def pickled_and_resumed():
    """A training of two epochs, pickled, and the same after two more."""
    with pytest.MonkeyPatch.context() as patch:
        fit_in_few_steps(patch)
        trainer = make_trainer()
        quick(trainer)
        with pytest.warns(UserWarning, match="pickled"):
            pickled = pickle.dumps(trainer)
        quick(trainer, 4, resume_training=True)
    return pickled, trainer


def fails(trainer, error, place, **arguments):
    """Let a training fail at a call of a method of the training of its networks."""
    with pytest.MonkeyPatch.context() as patch:
        if place is not None:
            name, number = place
            wrapped = interrupted_at(number, getattr(JeffreysTraining, name), error)
            patch.setattr(JeffreysTraining, name, wrapped)
        with pytest.raises(error):
            trainer.train(**arguments)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("how", ["retrain_from_scratch", "force_first_round_loss"])
def test_a_training_that_fails_changes_nothing(failure, how, pickled_and_resumed):
    pickled, resumed = pickled_and_resumed
    trainer = pickle.loads(pickled)
    theta, x, _ = trainer.get_simulations()
    before = state_of(trainer, theta, x)
    arguments, error, place = FAILURES[failure]
    fails(trainer, error, place, max_num_epochs=3, **{how: True}, **arguments)
    assert state_of(trainer, theta, x) == before
    quick(trainer, 4, resume_training=True)
    assert same_weights(trainer.flow, resumed.flow)
    assert torch.equal(*(one.energy(theta[None], x) for one in (trainer, resumed)))


@pytest.mark.parametrize("place", [("_run_epoch", 2), ("follow", 1)])
def test_resuming_that_fails_changes_nothing(place, pickled_and_resumed):
    """Also after epochs that the call itself trained."""
    pickled, resumed = pickled_and_resumed
    trainer = pickle.loads(pickled)
    theta, x, _ = trainer.get_simulations()
    before = state_of(trainer, theta, x)
    fails(trainer, MemoryError, place, max_num_epochs=4, resume_training=True)
    assert state_of(trainer, theta, x) == before
    quick(trainer, 4, resume_training=True)
    assert same_weights(trainer.flow, resumed.flow)


def test_a_first_training_that_fails_is_none():
    trainer = make_trainer()
    with pytest.raises(ValueError, match="batches"):
        trainer.train(**NO_BATCH)
    assert trainer.flow is None
    with pytest.raises(RuntimeError, match="no energy yet"):
        _ = trainer.energy
    fails(trainer, KeyboardInterrupt, ("_run_epoch", 1))
    with pytest.raises(RuntimeError, match="no training to resume"):
        trainer.train(resume_training=True)
    quick(trainer)


def test_rows_that_were_chosen_survive_a_training_that_fails():
    trainer = make_trainer()
    trainer.hold_out(0.25)
    with pytest.raises(ValueError, match="batches"):
        trainer.train(**NO_BATCH)
    quick(trainer)
    assert len(trainer.val_indices) == 30
    trainer.hold_out(0.5)
    quick(trainer, 3, resume_training=True)
    assert len(trainer.val_indices) == 30
    quick(trainer, retrain_from_scratch=True)
    assert len(trainer.val_indices) == 60
