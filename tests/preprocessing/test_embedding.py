import pytest
import torch
from torch import nn

from sbi_jeffreys.preprocessing.embedding import standardizing_embedding


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
