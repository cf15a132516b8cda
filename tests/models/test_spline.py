import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows.transforms.splines import unconstrained_rational_quadratic_spline

from sbi_jeffreys.models.spline import rational_quadratic_spline


def random_spline(seed, num=500, bins=10):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((num,), (2, bins, num), (bins - 1, num))
    )


@pytest.mark.parametrize("inverse", [False, True])
def test_equals_nflows(inverse):
    inputs, *knots = random_spline(0)
    outputs, log_slope = rational_quadratic_spline(inputs, *knots, 3.0, inverse)
    sizes, slopes = knots
    unit_slope = math.log(math.expm1(1 - 1e-3))  # nflows has no identity at zero
    expected = unconstrained_rational_quadratic_spline(
        inputs,
        *sizes.transpose(1, 2),
        slopes.T + unit_slope,
        inverse=inverse,
        tail_bound=3.0,
    )
    torch.testing.assert_close(outputs, expected[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(log_slope, expected[1], atol=1e-10, rtol=0)


@given(st.integers(0, 10_000), st.integers(2, 20))
@settings(max_examples=25, deadline=None)
def test_inverse_and_slope(seed, bins):
    inputs, *knots = random_spline(seed, num=100, bins=bins)
    inputs.requires_grad_()
    outputs, log_slope = rational_quadratic_spline(inputs, *knots, 3.0)
    (slope,) = torch.autograd.grad(outputs.sum(), inputs)
    torch.testing.assert_close(slope.log(), log_slope, atol=1e-6, rtol=0)
    back, log_slope_back = rational_quadratic_spline(outputs, *knots, 3.0, inverse=True)
    torch.testing.assert_close(back, inputs, atol=1e-6, rtol=0)
    torch.testing.assert_close(log_slope_back, -log_slope, atol=1e-5, rtol=0)


def test_zero_knots_are_the_identity():
    inputs = torch.linspace(-5, 5, 101, dtype=torch.float64)
    zeros = torch.zeros(2, 10, 101, dtype=torch.float64)
    outputs, log_slope = rational_quadratic_spline(inputs, zeros, zeros[0, 1:], 3.0)
    torch.testing.assert_close(outputs, inputs)
    torch.testing.assert_close(log_slope, torch.zeros_like(inputs))


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse):
    """Points inside and outside, away from knots, where second derivatives jump."""
    arguments = [values.requires_grad_() for values in random_spline(1, 40, 5)]
    assert torch.autograd.gradcheck(
        lambda *values: rational_quadratic_spline(*values, 3.0, inverse), arguments
    )


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shift", [0.0, -8.0])
def test_points_at_knots_in_single_precision(inverse, shift):
    """Next to knots, where slopes may be tiny, nothing becomes NaN."""
    _, sizes, slopes = (values.float() for values in random_spline(2, num=2000))
    slopes += shift
    shares = torch.softmax(sizes[1 if inverse else 0], 0)
    knots = 6 * (1e-3 * torch.arange(1, 11)[:, None] + 0.99 * shares.cumsum(0)) - 3
    for knot in knots[:-1]:
        for step in (-3, -1, 0, 1, 3):
            point = (knot + step * torch.finfo().eps * knot.abs()).requires_grad_()
            leaves = [point, sizes.requires_grad_(), slopes.requires_grad_()]
            outputs, log_slope = rational_quadratic_spline(*leaves, 3.0, inverse)
            gradients = torch.autograd.grad(outputs.sum() + log_slope.sum(), leaves)
            for values in (outputs, log_slope, *gradients):
                assert values.isfinite().all()
