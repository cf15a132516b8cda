"""How many draws the sampler adds, and when it stops."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors import annealing, corrected_sampler
from sbi_jeffreys.posteriors.annealing import Corrected
from sbi_jeffreys.posteriors.corrected_sampler import CorrectedSampler
from sbi_jeffreys.posteriors.trust import TrustCheck
from sbi_jeffreys.preprocessing.support import support_of
from tests.closed_forms import (
    ConjugateGaussian,
    GaussianFlow,
    QuadraticEnergy,
    gaussian_weights,
)

TASK = ConjugateGaussian(dim=2)


@pytest.fixture
def no_annealing(monkeypatch):
    """Keep the first draws, and call them unreliable."""

    def kept(pair, prior, x, theta, log_weights, num, block_size):
        return Corrected(theta[:num], torch.zeros(len(x), dtype=torch.bool))

    monkeypatch.setattr(corrected_sampler, "annealed", kept)


def make_sampler(monkeypatch, draw, num=1000):
    """A sampler that gets its draws from `draw`, given x and their number."""
    pair = TASK.pair()
    monkeypatch.setattr(pair, "weighted_draws", lambda x, n, prior, size: draw(x, n))
    return CorrectedSampler(pair, TASK.prior, num, 10_000)


def test_draws_are_added_until_they_are_effective_or_as_many_as_allowed(
    monkeypatch, no_annealing
):
    """The first entry of x tells which observation it is."""
    monkeypatch.setattr(corrected_sampler, "MAX_DISPLACED", 1.0)
    calls = []

    def draw(x, num):
        which = x[:, 0].long()
        calls.append((which.tolist(), num))
        log_w = torch.randn(num, 3) * torch.tensor([0.1, 0.9, 4.0])
        return torch.randn(num, len(which), 2), log_w[:, which]

    torch.manual_seed(0)
    sampler = make_sampler(monkeypatch, draw)
    assert (sampler.first_draws, sampler.max_draws) == (1800, 16_000)
    samples, is_reliable = sampler.sample(torch.tensor([[0.0, 0], [1, 0], [2, 0]]))
    assert samples.shape == (1000, 3, 2)
    assert is_reliable.tolist() == [True, True, False]
    drawn = [sum(num for which, num in calls if i in which) for i in range(3)]
    assert drawn[0] == 1800  # ESS / N is 0.99
    assert 1500 / math.exp(-0.81) * 0.8 < drawn[1] < 2 * 1500 / math.exp(-0.81)
    assert drawn[2] == 16_000


def test_draws_are_added_until_little_weight_is_displaced(monkeypatch, no_annealing):
    """More draws contain more of the tail that a flow too narrow misses."""
    monkeypatch.setattr(corrected_sampler, "ESS_PER_SAMPLE", 1e-9)
    monkeypatch.setattr(corrected_sampler, "MIN_DRAWS", 2400)

    def draw(x, num):
        theta, log_w = gaussian_weights(num, 1, 0.6, dim=2, seed=num)
        return theta.float(), log_w.float()

    sampler = make_sampler(monkeypatch, draw)
    torch.manual_seed(0)
    samples, _ = sampler.sample(torch.zeros(1, 2))
    monkeypatch.setattr(corrected_sampler, "MAX_DISPLACED", 1.0)
    loose, _ = sampler.sample(torch.zeros(1, 2))
    assert len(samples.unique(dim=0)) == len(loose.unique(dim=0)) == 1000
    assert samples.var() > loose.var()  # the tails come from the largest weights


@pytest.mark.parametrize("num", [1, 9, 99])
def test_where_too_much_is_displaced_draws_are_annealed(monkeypatch, num):
    """However few samples are wanted."""
    annealed = []

    def zeros(pair, prior, x, theta, log_weights, num, block_size):
        annealed.append(len(theta))
        reliable = torch.tensor([True, False])
        return Corrected(torch.zeros(num, *theta.shape[1:]), reliable)

    monkeypatch.setattr(corrected_sampler, "annealed", zeros)
    prior = MultivariateNormal(torch.zeros(2), 100 * torch.eye(2))
    sampler = CorrectedSampler(TASK.pair(20.0), prior, num, 10_000)
    samples, is_reliable = sampler.sample(torch.zeros(2, 2))
    assert annealed == [max(2000, 16 * num)]
    assert (samples == 0).all()
    assert is_reliable.tolist() == [True, False]


def test_few_samples_of_a_good_flow_take_few_draws():
    sampler = CorrectedSampler(TASK.pair(), TASK.prior, 1, 10_000)
    assert sampler.first_draws == 60
    samples, is_reliable = sampler.sample(torch.zeros(3, 2))
    assert samples.shape == (1, 3, 2)
    assert is_reliable.all()


class FourModes(nn.Module):
    """An equal mixture of four Gaussians at (±1, ±1, 0, 0, 0), each of variance 0.16."""

    embedding_net = nn.Identity()
    variances = torch.tensor([1.16, 1.16, 0.16, 0.16, 0.16])

    def forward(self, input, condition):
        signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).to(input)
        means = nn.functional.pad(signs, (0, 3))
        squares = (input.unsqueeze(-2) - means).square().sum(-1)
        return torch.logsumexp(-squares / 0.32, -1)


class StandardGaussian(QuadraticEnergy):
    """Four dimensions, given any x."""

    variances = torch.ones(4)


def far_off_pair(energy, scale, dim):
    """The energy beside a Gaussian flow with this standard deviation, and a prior."""
    flow = GaussianFlow(log_scale=math.log(scale))
    flow.input_shape = torch.Size((dim,))
    prior = MultivariateNormal(torch.zeros(dim).double(), 1e4 * torch.eye(dim).double())
    energy.support = support_of(prior, torch.zeros(2, dim).double())
    return ModelPair(flow, energy), prior


@pytest.fixture(params=[(FourModes, 1.3), (StandardGaussian, 6.0)], ids=["modes", "wide"])
def far_off(request):
    """Flow and energy of which 3 % and 0.3 % of the draws are effective; prior."""
    energy, scale = request.param[0](), request.param[1]
    return far_off_pair(energy, scale, len(energy.variances))


@pytest.mark.parametrize("num", [1, 5, 60, 400])
def test_samples_do_not_depend_on_how_many_are_wanted(far_off, num):
    """400 samples in all: their variances are the energy's, not the flow's.

    The bounds are five standard errors of the variance of 400 independent Gaussian draws,
    which those of the modes are below. Over all cases one in 10,000 runs fails.
    """
    pair, prior = far_off
    x = torch.zeros(400 // num, *pair.flow.input_shape).double()
    torch.manual_seed(num)
    samples, _ = CorrectedSampler(pair, prior, num, 100_000).sample(x)
    ratio = samples.square().mean((0, 1)) / pair.energy.variances
    assert (ratio - 1).abs().max() < 5 * math.sqrt(2 / 400)


def test_observations_that_are_annealed_in_groups_keep_their_places(monkeypatch):
    """Seven x, two in a group, sorted in between: posteriors have their means and a
    variance of one. All 28 means are within six standard errors of 400 draws."""
    sizes = []
    original = annealing.anneal_in_halves

    def watched(densities, support, theta, *rest):
        sizes.append(theta.shape[1])
        return original(densities, support, theta, *rest)

    monkeypatch.setattr(annealing, "anneal_in_halves", watched)
    pair, prior = far_off_pair(StandardGaussian(), 6.0, 4)
    x = 5.0 * torch.arange(7.0).double().unsqueeze(-1).expand(-1, 4)
    torch.manual_seed(0)
    samples, _ = CorrectedSampler(pair, prior, 400, 2000).sample(x)
    assert sum(sizes) == 7
    assert max(sizes) == 2
    z = samples - x
    assert z.mean(0).abs().max() < 6 / math.sqrt(400)
    assert (z.var((0, 2)) - 1).abs().max() < 6 * math.sqrt(2 / 1600)


@pytest.mark.parametrize(
    ("energy", "scale", "dim"), [(FourModes, 1.3, 5), (StandardGaussian, 3.0, 5)]
)
def test_the_corrected_posterior_is_trusted_where_the_flow_is_not(energy, scale, dim):
    """k̂ says of many observations that the flow is not to be trusted. The steps say of
    200 that the samples are: all but 1 in 100 in the mean, and more than 8 in one run of
    10,000."""
    torch.manual_seed(0)
    pair, prior = far_off_pair(energy(), scale, dim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = TrustCheck(pair, prior, None).report(
            torch.zeros(200, dim).double(), 2000, 100_000
        )
    assert int((~report.flow_is_trustworthy).sum()) > 20
    assert int((~report.corrected_is_reliable).sum()) <= 8
    assert sum("calibrate the corrected posterior" in v for v in report.verdicts) > 20
