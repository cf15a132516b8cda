"""A training on disk: killed, damaged, of another training."""

import multiprocessing
import os
import signal

import pytest
import torch

from sbi_jeffreys import stages
from sbi_jeffreys.training import checkpoint_file
from sbi_jeffreys.training.loop import JeffreysTraining
from tests.conftest import fit_in_few_steps
from tests.small_trainings import (
    BOX,
    interrupted_at,
    make_trainer,
    quick,
    same_weights,
    simulate,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")


@pytest.fixture(autouse=True)
def at_every_epoch(monkeypatch):
    """Write at every epoch. Cycles have three and six epochs, and none stays alone."""
    monkeypatch.setattr(checkpoint_file, "INTERVAL", -1.0)
    monkeypatch.setattr("sbi_jeffreys.training.schedule.MOST_EPOCHS", 3)
    monkeypatch.setattr("sbi_jeffreys.training.schedule.LEAST_EPOCHS", 1)
    monkeypatch.setattr(stages, "MAX_LAG", 100.0)


def train_and_die(path, name, number):
    """Train, and be killed at a call of a method of the training of the networks."""

    class Dies(BaseException):
        def __init__(self):
            os.kill(os.getpid(), signal.SIGKILL)

    method = getattr(JeffreysTraining, name)
    setattr(JeffreysTraining, name, interrupted_at(number, method, Dies))
    make_trainer().train(training_batch_size=50, max_num_epochs=6, checkpoint=path)


def same_training(one, other, theta, x):
    return (
        same_weights(one.flow, other.flow)
        and torch.equal(one.energy(theta[None], x), other.energy(theta[None], x))
        and one.train_indices.equal(other.train_indices)
        and all(
            one.summary[name] == values
            for name, values in other.summary.items()
            if name != "epoch_durations_sec"
        )
    )


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_training_that_was_killed_goes_on_exactly_from_its_file(tmp_path):
    """Killed in the first cycle, in the second, and while the flow follows. The random
    state of the new process does not matter."""
    path = tmp_path / "training.pt"
    for name, number in (("_run_epoch", 3), ("_run_epoch", 3), ("follow", 2)):
        process = multiprocessing.get_context("fork").Process(
            target=train_and_die, args=(path, name, number)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    trainer = make_trainer()
    torch.manual_seed(99)
    quick(trainer, 6, checkpoint=path)
    whole = make_trainer()
    quick(whole, 6)
    theta, x, _ = whole.get_simulations()
    assert same_training(trainer, whole, theta, x)
    again = make_trainer()
    quick(again, 6, resume_training=True, checkpoint=path)
    assert same_training(again, whole, theta, x)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of a training that has ended."""
    path = tmp_path_factory.mktemp("checkpoint") / "training.pt"
    with pytest.MonkeyPatch.context() as patch:
        fit_in_few_steps(patch)
        quick(make_trainer(), checkpoint=path)
    return path


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_byte_that_changed_is_noticed(place, written, tmp_path):
    content = bytearray(written.read_bytes())
    content[int(place * len(content))] ^= 1
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"damaged\.pt is damaged"):
        trainer.train(checkpoint=path)
    path.write_bytes(written.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"damaged\.pt is damaged"):
        trainer.train(checkpoint=path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"damaged\.pt to be a checkpoint"):
        trainer.train(checkpoint=path)
    assert path.read_bytes() == b"something else"
    quick(trainer)


@pytest.mark.parametrize(
    ("options", "arguments", "name"),
    [
        ({"num": 110}, {}, "`simulations`"),
        ({"seed": 1}, {}, "`simulations`"),
        ({"num_particles": 3}, {}, "`options`"),
        ({"pool": False}, {}, "`pool`"),
        ({}, {"learning_rate": 1e-3}, "`learning_rate`"),
        ({"density_estimator": "maf"}, {}, "other networks"),
    ],
)
def test_the_file_of_another_training_is_refused(options, arguments, name, written):
    before = written.read_bytes()
    trainer = make_trainer(**options)
    arguments = {"training_batch_size": 50, **arguments}
    with pytest.raises(ValueError, match=name):
        trainer.train(checkpoint=written, **arguments)
    assert written.read_bytes() == before
    assert trainer.flow is None


def test_a_trainer_that_was_trained_does_not_go_back_to_a_file(written, tmp_path):
    path = tmp_path / "training.pt"
    path.write_bytes(written.read_bytes())
    trainer = make_trainer()
    quick(trainer, checkpoint=path)
    with pytest.raises(ValueError, match="already been trained"):
        trainer.train(checkpoint=path)
    first = trainer.flow
    assert quick(trainer, retrain_from_scratch=True, checkpoint=path) is not first
    assert path.read_bytes() != written.read_bytes()
    theta = BOX.sample((30,))
    trainer.append_simulations(theta, simulate(theta))
    with pytest.raises(ValueError, match="`simulations`"):
        trainer.train(
            force_first_round_loss=True, checkpoint=path, training_batch_size=50
        )


def test_a_training_goes_on_without_a_place_to_write(tmp_path, monkeypatch):
    def full(file, title, content):
        raise OSError(28, "No space left on device")

    trainer = make_trainer()
    with pytest.raises(ValueError, match="folder that exists"):
        trainer.train(checkpoint=tmp_path / "nowhere" / "training.pt")
    path = tmp_path / "training.pt"
    quick(trainer, 1, checkpoint=path)
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint_file, "write_sealed", full)
    with pytest.warns(UserWarning, match=r"training\.pt could not be written.*No space"):
        quick(trainer, 2, resume_training=True, checkpoint=path)
    assert path.read_bytes() == before


def test_an_interrupt_writes_and_so_does_the_end_of_a_cycle(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_file, "INTERVAL", 1e9)
    epochs = []
    write = checkpoint_file.CheckpointFile.write

    def record(self, state):
        epochs.append(state["checkpoint"]["epoch"])
        write(self, state)

    monkeypatch.setattr(checkpoint_file.CheckpointFile, "write", record)
    trainer = make_trainer(pool=False)
    method = interrupted_at(6, JeffreysTraining._run_epoch)
    monkeypatch.setattr(JeffreysTraining, "_run_epoch", method)
    with pytest.warns(UserWarning, match="interrupted after 5 epochs"):
        trainer.train(
            training_batch_size=50,
            checkpoint=tmp_path / "training.pt",
            stop_after_epochs=9,
        )
    assert epochs == [3, 5]
