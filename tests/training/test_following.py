"""Following, on a Gaussian flow and a quadratic energy."""

import copy

import pytest
import torch

from sbi_jeffreys.training.following import follow
from sbi_jeffreys.training.step import TrainingOptions
from tests.closed_forms import GaussianFlow, QuadraticEnergy
from tests.training.test_loop import (
    TRAINING,
    VALIDATION,
    make_batches,
    make_training,
    run,
)

GOOD = {"a": 1 / 0.3**2, "b": 0.5}  # the energy of the data of `make_batches`


def follow_energy(flow, energy, best_loss=float("inf"), epochs=40):
    return follow(
        flow,
        energy,
        make_batches(TRAINING),
        make_batches(VALIDATION),
        options=TrainingOptions(),
        learning_rate=0.05,
        best_loss=best_loss,
        seed=1,
        device=torch.device("cpu"),
        max_num_epochs=epochs,
        stop_after_epochs=epochs,
        clip_max_norm=5.0,
        show_progress=False,
    )


def test_the_flow_becomes_the_energy_which_stays_as_it_is():
    torch.manual_seed(0)
    flow, energy = GaussianFlow(), QuadraticEnergy(**GOOD).train()
    energy.c.requires_grad_(False)
    before = copy.deepcopy(energy.state_dict())
    followed = follow_energy(flow, energy, epochs=150)
    assert flow.loc.item() == pytest.approx(0.5, abs=0.05)
    assert flow.log_scale.exp().item() == pytest.approx(0.3, abs=0.06)
    for name, value in flow.state_dict().items():
        assert torch.equal(value, followed.weights[name])
    for name, value in energy.state_dict().items():
        assert torch.equal(value, before[name])
    assert [p.requires_grad for p in energy.parameters()] == [True, True, False]
    assert not energy.training
    assert all(p.grad is None for p in [*flow.parameters(), *energy.parameters()])


def test_only_what_lowers_the_held_out_loss_is_kept():
    flow = GaussianFlow(0.5, -1.2)
    before = copy.deepcopy(flow.state_dict())
    followed = follow_energy(flow, QuadraticEnergy(0.1, -3.0), best_loss=0.0, epochs=5)
    assert followed.loss == 0.0
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_training_recalls_what_its_flow_has_gained():
    training = make_training()
    run(training, 3)
    best = training.best_loss
    assert training.recall_followed() == best
    options = {
        "max_num_epochs": 40,
        "stop_after_epochs": 40,
        "clip_max_norm": 5.0,
        "show_progress": False,
    }
    batches = make_batches(TRAINING), make_batches(VALIDATION)
    loss = training.follow(QuadraticEnergy(**GOOD), *batches, **options)
    gained = copy.deepcopy(training.pair.flow.state_dict())
    assert loss < best == training.best_loss

    run(training, 4)
    assert training.best_loss > loss
    assert not torch.equal(training.pair.flow.loc, gained["loc"])
    assert training.recall_followed() == loss
    assert torch.equal(training.pair.flow.loc, gained["loc"])
    nothing = {**options, "max_num_epochs": 0}
    assert training.follow(QuadraticEnergy(), *batches, **nothing) == loss


def test_following_has_no_influence_on_how_training_goes_on():
    plain, followed = make_training(), make_training()
    run(plain, 8)
    run(followed, 4)
    followed.follow(
        QuadraticEnergy(**GOOD),
        make_batches(TRAINING),
        make_batches(VALIDATION),
        max_num_epochs=5,
        stop_after_epochs=5,
        clip_max_norm=5.0,
        show_progress=False,
    )
    run(followed, 8)
    losses = [t.history["validation_loss"] for t in (plain, followed)]
    assert losses[0] == losses[1]
