"""Conformal p-values: against their definition, and that they keep their promise."""

import pytest
import torch

from sbi_jeffreys.novelty import Novelty


def p_value_by_definition(x_o, simulations, k):
    """Rank of the k-th neighbour's distance among all points, each with all others."""
    loc, scale = simulations.mean(0), simulations.std(0)
    points = (torch.cat([simulations, x_o.unsqueeze(0)]) - loc) / scale
    differences = points.unsqueeze(0) - points.unsqueeze(1)
    distances = differences.square().sum(-1).sqrt().fill_diagonal_(torch.inf)
    kth = distances.sort(-1).values[:, k - 1]
    return float((kth >= kth[-1]).double().mean())


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_p_values_are_those_of_their_definition(k, shape):
    torch.manual_seed(0)
    x, new = torch.randn(40, *shape), 2 * torch.randn(30, *shape)
    got = Novelty(x, num_neighbors=k)(new)
    want = [p_value_by_definition(o.flatten(), x.flatten(1), k) for o in new]
    assert got.tolist() == pytest.approx(want)


def test_one_in_a_hundred_is_called_unusual_and_of_those_outside_all():
    """p ≤ α has a probability of at most α: of 40 × 200 observations, between 0.6 and
    1.3 % are below 0.01, as simulations are shared, within five standard errors."""
    torch.manual_seed(0)
    alarms, power = [], []
    for _ in range(40):
        simulations = torch.randn(400, 3).exp()  # not Gaussian at all
        novelty = Novelty(simulations)
        alarms.append((novelty(torch.randn(200, 3).exp()) <= 0.01).double().mean())
        power.append((novelty(20 + torch.randn(200, 3).exp()) <= 0.01).all())
    assert 0.004 < torch.stack(alarms).mean() < 0.016
    assert all(power)


def test_an_observation_off_the_simulations_within_their_range_is_unusual():
    """On no axis outside, but the simulations lie on a line."""
    torch.manual_seed(0)
    t = torch.randn(500, 1)
    novelty = Novelty(t * torch.ones(1, 2) + 0.01 * torch.randn(500, 2))
    assert novelty(torch.tensor([[2.0, -2.0]])) == pytest.approx(1 / 501)
    assert novelty(torch.tensor([[0.5, 0.5]])) > 0.05


def test_few_or_constant_or_many_simulations():
    assert Novelty(torch.randn(2, 3))(torch.randn(4, 3)).shape == (4,)
    constant = torch.cat([torch.randn(50, 1), torch.ones(50, 1)], 1)
    usual, unusual = Novelty(constant)(torch.tensor([[0.0, 1.0], [0.0, 9.0]])).tolist()
    assert usual > 0.05
    assert unusual == pytest.approx(1 / 51)
    assert len(Novelty(torch.randn(5000, 2)).simulations) == 1000
    assert len(Novelty(torch.randn(150, 100_000)).simulations) == 100
    with pytest.raises(ValueError, match="at least two simulations `x`, got 1"):
        Novelty(torch.randn(1, 3))
