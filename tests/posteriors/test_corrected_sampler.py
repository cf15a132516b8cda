"""How many draws the sampler adds, and when it stops."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_jeffreys.posteriors import corrected_sampler
from sbi_jeffreys.posteriors.corrected_sampler import CorrectedSampler
from sbi_jeffreys.sampling.psis import MAX_PARETO_K
from tests.closed_forms import ConjugateGaussian, gaussian_weights

TASK = ConjugateGaussian(dim=2)


@pytest.fixture
def no_annealing(monkeypatch):
    """Keep the draws that were chosen."""
    monkeypatch.setattr(
        CorrectedSampler,
        "_anneal",
        lambda self, theta, log_weights, x: theta[: self.num],
    )


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
    samples, pareto_k = sampler.sample(torch.tensor([[0.0, 0], [1, 0], [2, 0]]))
    assert samples.shape == (1000, 3, 2)
    assert pareto_k[2] > MAX_PARETO_K > pareto_k[1]
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


def test_where_too_much_is_displaced_draws_are_annealed(monkeypatch):
    """But from fewer than 1,000 draws, which are too few to judge, they are not."""
    annealed = []

    def anneal(self, theta, log_weights, x):
        annealed.append(len(theta))
        return torch.zeros(self.num, *theta.shape[1:])

    monkeypatch.setattr(CorrectedSampler, "_anneal", anneal)
    prior = MultivariateNormal(torch.zeros(2), 100 * torch.eye(2))
    few, many = (CorrectedSampler(TASK.pair(20.0), prior, num, 10_000) for num in (9, 99))
    samples, pareto_k = few.sample(torch.zeros(2, 2))
    assert not annealed
    assert samples.abs().min() > 0
    assert pareto_k.isneginf().all()
    samples, pareto_k = many.sample(torch.zeros(2, 2))
    assert annealed == [1584]
    assert (samples == 0).all()
    assert pareto_k.isfinite().all()
