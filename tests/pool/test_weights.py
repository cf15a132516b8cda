"""Weights of the pool: the minimum, when it counts, and how often by mistake."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from sbi_jeffreys.pool import weights as module
from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.weights import MIN_WEIGHT, best_weights


class Product(nn.Module):
    def forward(self, input, condition):
        return (input * condition).sum(-1)


class Entry(nn.Module):
    """A multiple of an entry of the parameters, whatever x is."""

    def __init__(self, entry, factor=0.5):
        super().__init__()
        self.entry, self.factor = entry, factor

    def forward(self, input, condition):
        return self.factor * input[..., self.entry]


NOTHING = Entry(0, factor=0.0)


@pytest.mark.parametrize(("smaller", "weight"), [(0.1, 0.0), (3.0, 1.0)])
def test_a_gain_is_visible_by_students_distribution(smaller, weight):
    """One of two pairs gains 0.69 nats, and the other 0.05 or 0.64. The mean gain is then
    1.15 or 27 standard errors. With two pairs, 1.84 standard errors are needed."""
    theta = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 2, 1)
    held_out = Candidates.unweighted(
        theta, torch.tensor([[20.0], [smaller]]), torch.zeros(2, 2)
    )
    weights = best_weights(NOTHING, [Product(), NOTHING, NOTHING], held_out).weights
    assert weights == pytest.approx([weight, 0.0, 0.0], abs=1e-6)


def gains_of(num, seed, scale=1.0):
    """Log weights `(1 + K, num)` and gains `(3, 1 + K, num)` with something to find."""
    rng = np.random.default_rng(seed)
    log_weights = rng.standard_normal((33, num))
    gains = scale * rng.standard_normal((3, 33, num))
    gains[:, 0] += scale * rng.uniform(-0.2, 1.0, (3, 1))
    return log_weights, gains


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 1e4])
def test_the_minimum_is_below_all_points_of_a_grid(scale):
    grid = [np.array(w) / 10 for w in product(range(11), repeat=3) if sum(w) <= 10]
    for seed in range(3):
        log_weights, gains = gains_of(30, seed, scale)
        found = module._minimum(log_weights, gains, np.ones(log_weights.shape[1]))
        assert (found >= 0).all()
        assert found.sum() <= 1
        losses = [module._losses(w, log_weights, gains).mean() for w in (found, *grid)]
        assert losses[0] <= min(losses) + 1e-6


def test_models_with_little_weight_are_left_out():
    """The weights of the others are then the best ones without it."""
    for seed in range(20):
        log_weights, gains = gains_of(50, seed)
        gains[2] = gains[1] + 0.3 * gains[2]
        weights = module._visible_weights(
            log_weights, gains, np.ones(log_weights.shape[1])
        )
        assert all(w == 0 or w >= MIN_WEIGHT for w in weights)
        part = weights > 0
        if part.any():
            again = module._minimum(
                log_weights, gains[part], np.ones(log_weights.shape[1])
            )
            np.testing.assert_allclose(weights[part], again, atol=1e-3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_give_no_weight(value):
    torch.manual_seed(0)
    theta = torch.randn(5, 40, 1)
    theta[0] += 2.0
    held_out = Candidates.unweighted(theta, torch.ones(40, 1), torch.zeros(5, 40))
    broken = Entry(0, factor=value)
    weights = best_weights(NOTHING, [broken, Product()], held_out).weights
    assert weights[0] == 0.0
    assert weights[1] > 0.5
    assert best_weights(broken, [Product()], held_out).weights == [0.0]
    impossible = held_out._replace(log_weights=torch.full((5, 40), -torch.inf))
    assert best_weights(NOTHING, [Product()], impossible).weights == [0.0]
    outside = torch.zeros(5, 40)
    outside[3] = -torch.inf  # draws where the prior is zero
    some = best_weights(NOTHING, [Product()], held_out._replace(log_weights=outside))
    assert some.weights[0] > 0.5


@pytest.mark.parametrize(("num", "most"), [(10, 30), (100, 20)])
def test_models_that_know_nothing_seldom_have_a_weight(num, most):
    """True parameters are draws like the others.

    In 2,000 trials, some weight was above zero in 19 % with ten pairs, and in 10 % with
    100 pairs. By chance, 100 trials exceed the limits three times in 1,000 with ten
    pairs, and less than once in 1,000 with 100 pairs."""
    wrong = 0
    for seed in range(100):
        torch.manual_seed(seed)
        held_out = Candidates.unweighted(
            torch.randn(33, num, 3), torch.zeros(num, 1), torch.zeros(33, num)
        )
        models = [Entry(d) for d in range(3)]
        wrong += any(best_weights(NOTHING, models, held_out).weights)
    assert 0 < wrong <= most


def test_losses_are_those_of_the_pool_and_of_the_networks():
    """By hand: the loss is minus the log share of the true parameters."""
    torch.manual_seed(0)
    theta = torch.randn(9, 40, 1)
    theta[0] += 2.0
    held_out = Candidates.unweighted(theta, torch.ones(40, 1), 0.1 * torch.randn(9, 40))
    choice = best_weights(NOTHING, [Product()], held_out)
    (weight,) = choice.weights
    assert weight > 0.5
    for loss, w in ((choice.loss, weight), (choice.loss_of_networks, 0.0)):
        log_v = held_out.log_weights + w * theta[..., 0]
        assert loss == pytest.approx(-log_v.log_softmax(0)[0].mean().item(), abs=1e-5)
    assert choice.loss < choice.loss_of_networks - 0.5


def test_without_models_the_loss_is_that_of_the_networks():
    held_out = Candidates.unweighted(
        torch.randn(9, 40, 1), torch.ones(40, 1), torch.zeros(9, 40)
    )
    choice = best_weights(Product(), [], held_out)
    assert choice.weights == []
    assert choice.loss == choice.loss_of_networks
