"""The layers, compared with those of nflows and with their own inverses."""

import math

import pytest
import torch
from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
from torch import nn

from sbi_jeffreys.models.transforms import (
    ConditionalAffine,
    Layers,
    Mixing,
    SplineCoupling,
)

FEATURES, CONTEXT, HIDDEN, BINS = 5, 3, 16, 6


def away_from_the_identity(layer, scale=0.3):
    for parameter in layer.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return layer.double()


def make_coupling(features=FEATURES, moves_first_half=True):
    return away_from_the_identity(
        SplineCoupling(features, moves_first_half, CONTEXT, HIDDEN, 1, BINS, 3.0)
    )


def make_layers(features=FEATURES):
    return [
        away_from_the_identity(ConditionalAffine(features, CONTEXT, HIDDEN, 1)),
        make_coupling(features),
        away_from_the_identity(Mixing(features)),
        make_coupling(features, moves_first_half=False),
    ]


class AsNflowsWants(nn.Module):
    """The network of a coupling, with outputs in the order `(rows, moved, 3K − 1)`."""

    def __init__(self, coupling):
        super().__init__()
        self.coupling = coupling

    def forward(self, inputs, context):
        net, bins = self.coupling.net, self.coupling.num_bins
        knots = self.coupling.to_knots(net(inputs, self.coupling.given(context)))
        knots = knots.unflatten(-1, (3 * bins - 1, -1)).transpose(1, 2)
        unit_slope = math.log(math.expm1(1 - 1e-3))  # nflows has no identity at zero
        knots[..., 2 * bins :] += unit_slope
        return knots.flatten(1)


@pytest.mark.parametrize("moves_first_half", [True, False])
def test_a_coupling_has_the_density_of_nflows_coupling(moves_first_half):
    torch.manual_seed(0)
    ours = make_coupling(moves_first_half=moves_first_half)
    half = torch.arange(FEATURES) < FEATURES // 2
    theirs = PiecewiseRationalQuadraticCouplingTransform(
        half == moves_first_half,
        lambda _in, _out: AsNflowsWants(ours),
        num_bins=BINS,
        tails="linear",
        tail_bound=3.0,
    )
    rows = 2 * torch.randn(50, FEATURES, dtype=torch.float64)
    context = torch.randn(50, CONTEXT, dtype=torch.float64)
    for direction in ("forward", "inverse"):
        got = getattr(ours, direction)(rows, ours.given(context))
        want = getattr(theirs, direction)(rows, context)
        for value, expected in zip(got, want, strict=True):
            torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("features", [1, 2, 5])
def test_inverses_and_log_determinants(features):
    torch.manual_seed(1)
    layers = make_layers(features)
    context = torch.randn(7, CONTEXT, dtype=torch.float64)
    rows = torch.randn(14, features, dtype=torch.float64)  # two of each context
    for layer in [*layers, Layers(features, layers)]:
        given = layer.given(context)
        noise, log_det = layer.forward(rows, given)
        back, log_det_back = layer.inverse(noise, given)
        torch.testing.assert_close(back, rows, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(log_det_back, -log_det, atol=1e-6, rtol=1e-6)
        for i in (0, 9):
            one = layer.given(context[i % 7][None])
            jacobian = torch.autograd.functional.jacobian(
                lambda row, layer=layer, one=one: layer.forward(row[None], one)[0][0],
                rows[i],
            )
            torch.testing.assert_close(jacobian.slogdet()[1], log_det[i])


def test_layers_take_a_context_or_what_they_made_of_it():
    torch.manual_seed(2)
    layers = Layers(FEATURES, make_layers())
    rows = torch.randn(6, FEATURES, dtype=torch.float64)
    context = torch.randn(3, CONTEXT, dtype=torch.float64)
    for direction in (layers.forward, layers.inverse):
        for got, want in zip(
            direction(rows, context), direction(rows, layers.given(context)), strict=True
        ):
            assert torch.equal(got, want)
