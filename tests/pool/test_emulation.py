"""Emulated pairs: where they come from, and what their weights make of a wrong model."""

import math

import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.distributions import MultivariateNormal

from sbi_jeffreys.pool.emulation import (
    LOG_WEIGHT_BOUNDS,
    NUM_BATCHES,
    EmulatedBatches,
    Emulator,
    HalfSimulatedBatches,
    NearbyBatches,
)
from sbi_jeffreys.pool.exponential_family import ExponentialFamily
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.synthetic_likelihood import SyntheticLikelihood
from tests.closed_forms import ConjugateGaussian

TASK = ConjugateGaussian(dim=2, variance=0.5)
FEATURES = TASK.simulate(100, 1)[1]


class Model(nn.Module):
    """x = θ + e with errors of some variance, and the log-ratio that belongs to it."""

    def __init__(self, variance):
        super().__init__()
        self.variance = variance
        self.net = ConjugateGaussian(2, variance).energy().net

    def simulate(self, theta, features):
        assert features is FEATURES
        theta = theta * self.net.scale + self.net.loc
        return theta + self.variance**0.5 * torch.randn_like(theta)

    def fit_evidence(self, candidates):
        raise AssertionError("its log-ratio is exact")

    def forward(self, input, condition):
        return self.net(input, condition)


def batches(variance=0.8, is_weighted=True, size=200, energy=None):
    energy = energy or TASK.energy()
    return EmulatedBatches(
        Model(variance), TASK.prior, energy, FEATURES, is_weighted, size
    )


def drawn(num, **options):
    torch.manual_seed(0)
    some = batches(size=num, **options).shuffled(0)
    return next(some)


def test_only_the_synthetic_likelihood_can_be_drawn_from():
    kinds = (LinearModel, ExponentialFamily, SyntheticLikelihood)
    assert [issubclass(kind, Emulator) for kind in kinds] == [False, False, True]


def test_pairs_are_fresh_in_every_batch_and_none_is_held_out():
    some = batches(size=30)
    seen = list(some.shuffled(0))
    assert len(some) == len(seen) == NUM_BATCHES
    theta = torch.cat([batch.theta for batch in seen])
    assert theta.shape == (30 * NUM_BATCHES, 2)
    assert len(theta.unique(dim=0)) == len(theta)
    assert list(some.ordered()) == []
    assert not any(values.requires_grad for batch in seen for values in batch)


def test_the_random_numbers_are_those_of_torch():
    """A training seeds them, and does not repeat itself from epoch to epoch."""
    some, epochs = batches(size=5), []
    for _ in range(2):
        torch.manual_seed(1)
        epochs.append([batch for seed in (0, 0) for batch in some.shuffled(seed)])
    for one, other in zip(*epochs, strict=True):
        assert torch.equal(one.theta, other.theta)
        assert torch.equal(one.x, other.x)
    assert not torch.equal(epochs[0][0].theta, epochs[0][NUM_BATCHES].theta)


def test_parameters_are_draws_of_the_prior():
    """An exact sampler fails with a probability of 0.1 % for each of two parameters."""
    theta = drawn(4000).theta
    for values in theta.T:
        assert kstest(values.numpy(), "norm").pvalue > 1e-3


def test_weights_by_hand():
    theta, x, weights = drawn(500)
    z = TASK.energy().standardize(theta)
    right, wrong = (
        ConjugateGaussian(2, variance).energy().net(z[None], x)[0]
        for variance in (0.5, 0.8)
    )
    log_weights = (right - wrong).clamp(*LOG_WEIGHT_BOUNDS)
    want = log_weights.exp() / log_weights.exp().mean()
    torch.testing.assert_close(weights, want, rtol=1e-4, atol=1e-5)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    assert weights.std() > 0.1
    assert torch.equal(drawn(500, is_weighted=False).weights, torch.ones(500))


class Members(nn.Module):
    """Two networks whose mean is the right log-ratio."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, input, condition):
        r = self.net(input, condition)
        return torch.stack([r - 3 * input[..., 0], r + 3 * input[..., 0]])


def test_networks_of_several_members_are_averaged():
    energy = TASK.energy()
    energy.net = Members(energy.net)
    got, want = drawn(100, energy=energy).weights, drawn(100).weights
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Broken(nn.Module):
    """Log-ratios that are NaN, minus or plus infinity, or zero, in turn."""

    def forward(self, input, condition):
        values = torch.tensor([torch.nan, -torch.inf, torch.inf, 0.0])
        return values.repeat(input.shape[1] // 4).expand(input.shape[:2])


def test_weights_are_bounded():
    energy = TASK.energy()
    energy.net = Broken()
    weights = drawn(400, energy=energy).weights.reshape(-1, 4)
    low, high = (math.exp(bound) for bound in LOG_WEIGHT_BOUNDS)
    assert weights.isfinite().all()
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    for column, bound in ((0, low), (1, low), (2, high)):
        ratio = weights[:, column] / weights[:, 2]
        assert ratio.tolist() == pytest.approx([bound / high] * 100, rel=1e-4)


@pytest.mark.parametrize(("is_weighted", "variance"), [(True, 0.5), (False, 0.8)])
def test_weights_correct_a_wrong_model(is_weighted, variance):
    """The posterior of x has the mean x / (1 + variance), and the variance variance / (1
    + variance). So θ minus that mean is uncorrelated with x under the right weights, and
    its variance is known. Each of four estimates is three standard errors away with a
    probability of 0.3 %; the other posterior is more than ten away from two of them."""
    theta, x, weights = drawn(20_000, is_weighted=is_weighted)

    def distances(variance):
        errors = theta - x / (1 + variance)
        products = [errors * x, errors.square() - variance / (1 + variance)]
        terms = weights[:, None] * torch.cat(products, 1)
        return terms.mean(0).abs() / terms.std(0) * len(terms) ** 0.5

    assert distances(variance).max() < 3.5
    assert distances(1.3 - variance).sort().values[1] > 10


def test_half_of_the_x_are_simulated():
    """The simulated x are chosen anew for each batch, and the emulated ones are new."""
    half = HalfSimulatedBatches(batches(is_weighted=False, size=50))
    rows = {tuple(row) for row in FEATURES.tolist()}
    torch.manual_seed(0)
    first, second = ([tuple(row) in rows for row in half.draw().x.tolist()] for _ in "ab")
    assert first == second == [True] * 25 + [False] * 25
    x = torch.cat([half.draw().x[:25] for _ in range(200)])
    assert len(x.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("observed", [None, torch.zeros(1, 2)])
def test_pairs_near_an_observation_are_of_the_energys_posteriors(observed):
    """Two modes at x ± 1 with deviations of 0.3. Of 4,000 pairs each mode has half,
    within five standard errors. Parameters are chosen among few, so deviations within a
    mode are up to 15 % too large."""

    def two_modes(theta, x):
        squares = [(theta - x - side).square().sum(-1) for side in (-1.0, 1.0)]
        return torch.stack(squares).div(-2 * 0.3**2).logsumexp(0)

    torch.manual_seed(0)
    batches = NearbyBatches(
        lambda num: 0.1 * torch.randn(num, 2),
        observed,
        MultivariateNormal(torch.zeros(2), 1.3**2 * torch.eye(2)),
        two_modes,
        4000,
    )
    theta, x, weights = batches.draw()
    if observed is not None:
        assert (x[:2000] == 0).all()
    assert (weights == 1).all()
    side = (theta - x).mean(1).sign().unsqueeze(1)
    assert float((side > 0).float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)
    error = theta - x - side
    assert error.mean().item() == pytest.approx(0.0, abs=5 * 0.3 / 8000**0.5)
    assert 1.0 < error.std().item() / 0.3 < 1.15
