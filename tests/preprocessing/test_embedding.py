import pytest
import torch
from torch import nn

from sbi_jeffreys.preprocessing.embedding import (
    check_features,
    standardizing_embedding,
)
from tests.small_trainings import Apply


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1.0, 1e12])
def test_constant_entries_vanish_and_units_do_not_matter(unit):
    torch.manual_seed(0)
    theta, x = torch.randn(90, 2), torch.randn(90, 3)
    x[:, 2] = 300.2
    for net in (None, nn.Identity()):
        embedded = standardizing_embedding(theta, x * unit, net)(x * unit)
        assert embedded[:, 2].abs().max() < 1e-3
        sd = embedded[:, :2].std(0)
        torch.testing.assert_close(sd, torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("net", [None, nn.Identity()])
def test_x_far_outside_of_the_simulations_is_taken_for_the_most_extreme(net):
    torch.manual_seed(0)
    theta, x = torch.randn(200, 3), torch.randn(200, 3)
    x += theta
    embed = standardizing_embedding(theta, x, net)
    lowest, highest = x.amin(0, keepdim=True), x.amax(0, keepdim=True)
    margin = 0.1 * (highest - lowest)
    for far, edge in ((1e9, highest + margin), (-1e9, lowest - margin)):
        torch.testing.assert_close(embed(torch.full((1, 3), far)), embed(edge))
    assert (embed(highest + margin / 2) > embed(highest)).all()
    assert (embed(x) <= embed(highest)).all()
    x[0] = 1e6  # an outlier, at 14 standard deviations, of which there may be more
    embed = standardizing_embedding(theta, x, nn.Identity())
    assert 14 < embed(torch.full((1, 3), 1e9)).max() < 16


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.sum(1), r"features of shape .* for x of shape \(2, 3\), got \(2,\)"),
        (lambda x: x.new_zeros(len(x), 2, 3), r"features of shape .*, got \(2, 2, 3\)"),
        (lambda x: x[:1], r"features of shape .*, got \(1, 3\)"),
        (lambda x: None, "features of shape .*, got a NoneType"),
        (lambda x: x.double(), r"dtype torch.float32, got torch.float64"),
        (lambda x: x / 0, "finite features, got NaN or infinite ones for 2 of 2"),
        (nn.Linear(7, 2), r"take x of shape \('batch', 3\), but it raises: mat1"),
    ],
)
def test_what_an_embedding_may_not_return(function, message):
    with pytest.raises(ValueError, match=f"Expected `name` to {message}|{message}"):
        standardizing_embedding(
            torch.randn(50, 2), torch.randn(50, 3), Apply(function), "name"
        )


def test_only_simulations_that_an_embedding_does_not_know_are_counted():
    x = torch.randn(50, 3)
    x[10:13, 1], x[13, 2] = torch.nan, torch.inf
    check_features("it", Apply(lambda x: x.nan_to_num(0.0, 0.0, 0.0)), x)
    with pytest.raises(ValueError, match=r"for 3 of 6 simulations tried, 4 of them"):
        check_features("it", Apply(lambda x: x.clamp(max=9.0)), x)


def test_trying_an_embedding_does_not_change_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    state = torch.get_rng_state()
    check_features("it", net, torch.randn(50, 3, generator=torch.Generator()))
    assert net[0].num_batches_tracked == 0
    assert net.training
    assert torch.equal(state, torch.get_rng_state())


def test_missing_entries_stay_missing_and_others_are_standardised():
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(2000, 4)
    x[torch.rand_like(x) < 0.3] = torch.nan
    embed = standardizing_embedding(
        torch.randn(2000, 2), x, Apply(lambda x: x.nan_to_num(9.0))
    )
    z = embed[:2](x)
    assert torch.equal(z.isnan(), x.isnan())
    for column in z.T:
        known = column[~column.isnan()]
        assert known.mean().abs() < 1e-5
        assert known.std().item() == pytest.approx(1, abs=1e-5)
