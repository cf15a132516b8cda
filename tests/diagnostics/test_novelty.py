"""Conformal p-values: against their definition, and that they keep their promise."""

import pytest
import torch

from sbi_jeffreys.diagnostics.novelty import Novelty


def test_p_values_are_ranks_of_distances_to_the_kth_landmark():
    torch.manual_seed(0)
    x, new = torch.randn(300, 2, 2), 2 * torch.randn(30, 2, 2)
    novelty = Novelty(x, num_neighbors=3)
    rows = x.flatten(1)
    landmarks = novelty.landmarks * novelty.scale + novelty.loc
    is_landmark = (landmarks.unsqueeze(1) - rows).abs().sum(-1).min(0).values < 1e-4
    assert int(is_landmark.sum()) == 150
    scale = rows[is_landmark].std(0)

    def distance(point):
        differences = (point - rows[is_landmark]) / scale
        return differences.square().sum(-1).sqrt().sort().values[2]

    ranked = torch.stack([distance(row) for row in rows[~is_landmark]])
    want = [
        float(1 + (ranked >= distance(o.flatten())).sum()) / (1 + len(ranked))
        for o in new
    ]
    assert novelty(new).tolist() == pytest.approx(want, abs=1.5 / 151)


DRAWS = {
    "lognormal": lambda n: torch.randn(n, 3).exp(),
    "heavy tails": lambda n: torch.randn(n, 20) / torch.randn(n, 20),
    "rare counts": lambda n: torch.poisson(torch.full((n, 100), 0.002)),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("num", [120, 400])
def test_at_most_one_in_a_hundred_is_called_unusual_whatever_the_simulator(name, num):
    """150 times, 50 observations share the simulations, so that shares of the unusual
    have a standard deviation of about 0.02, and their mean of 0.0016: within five."""
    torch.manual_seed(0)
    draw = DRAWS[name]
    shares = [
        float((Novelty(draw(num))(draw(50)) < 0.01).double().mean()) for _ in range(150)
    ]
    assert sum(shares) / 150 < 0.018


def test_equal_simulations_are_at_distance_zero_in_any_batch():
    """Most are all zeros here; that is the most usual x there is."""
    torch.manual_seed(2)
    x = (torch.rand(1000, 20) < 0.004 / 20).float()
    novelty = Novelty(x)
    assert novelty(torch.zeros(1, 20)) == 1
    new = (torch.rand(300, 20) < 0.05).float()
    alone = torch.cat([novelty(row) for row in new.split(1)])
    assert torch.equal(novelty(new), alone)


def test_outside_of_the_simulations_all_are_unusual():
    torch.manual_seed(0)
    assert (Novelty(torch.randn(400, 3).exp())(40 + torch.randn(50, 3)) < 0.01).all()


def test_an_observation_off_the_simulations_within_their_range_is_unusual():
    """On no axis outside, but the simulations lie on a line."""
    torch.manual_seed(0)
    t = torch.randn(500, 1)
    novelty = Novelty(t * torch.ones(1, 2) + 0.01 * torch.randn(500, 2))
    assert novelty(torch.tensor([[2.0, -2.0]])) == pytest.approx(1 / 251)
    assert novelty(torch.tensor([[0.5, 0.5]])) > 0.05


def test_an_entry_in_small_units_counts_as_any_other():
    torch.manual_seed(0)
    units = torch.tensor([1e-9, 1.0])
    novelty = Novelty(units * torch.randn(1000, 2))
    assert novelty(units * torch.tensor([[9.0, 0.0]])) < 0.01
    assert novelty(units * torch.tensor([[0.5, 0.0]])) > 0.05


def test_few_or_constant_or_many_simulations():
    assert Novelty(torch.randn(2, 3))(torch.randn(4, 3)).shape == (4,)
    constant = torch.cat([torch.randn(50, 1), torch.ones(50, 1)], 1)
    usual, unusual = Novelty(constant)(torch.tensor([[0.0, 1.0], [0.0, 9.0]])).tolist()
    assert usual > 0.05
    assert unusual == pytest.approx(1 / 31)
    for x, kept in ((torch.randn(5000, 2), 2000), (torch.randn(250, 100_000), 200)):
        novelty = Novelty(x)
        assert len(novelty.landmarks) + len(novelty.distances) == kept
    with pytest.raises(ValueError, match="at least two simulations `x`, got 1"):
        Novelty(torch.randn(1, 3))
