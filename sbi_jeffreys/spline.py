"""Monotone rational-quadratic splines without data-dependent shapes."""

from math import expm1, log

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax, softplus

MIN_BIN = 1e-3
"""Least width and height of a bin, as a fraction of the interval."""
MIN_SLOPE = 1e-3
"""Least derivative at a knot."""

_UNIT_SLOPE = log(expm1(1 - MIN_SLOPE))  # softplus gives this the slope 1


def rational_quadratic_spline(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    slopes: Tensor,
    tail_bound: float,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Monotone spline on [-tail_bound, tail_bound], the identity outside.

    With $\xi \in [0, 1]$ the position in a bin of width $w$, height $h$, chord $s = h/w$
    and end slopes $d_0, d_1$,

    .. math:: g(\xi) = g_0 + h \frac{s \xi^2 + d_0 \xi (1 - \xi)}
        {s + (d_0 + d_1 - 2s) \xi (1 - \xi)}

    (Durkan et al. 2019, arXiv:1906.04032, eqs. 4 and 5; the inverse solves a quadratic).
    Bins come first, so that every operation runs over contiguous memory.

    Args:
        inputs: Points, shape `(...)`.
        widths: Unnormalised bin widths, shape `(bins, ...)`.
        heights: Unnormalised bin heights, shape `(bins, ...)`.
        slopes: Unnormalised slopes at the inner knots, shape `(bins - 1, ...)`; where
            these, widths and heights are zero, the spline is the identity.
        tail_bound: Half the length of the interval, positive.
        inverse: Whether to evaluate the inverse of the spline.

    Returns:
        The outputs, and the log derivative of outputs by inputs, both of shape `(...)`.
    """
    inside = inputs.abs() < tail_bound
    point = torch.where(inside, inputs, 0.0)

    x_knots, widths = _knots(widths, tail_bound)
    y_knots, heights = _knots(heights, tail_bound)
    slopes = MIN_SLOPE + softplus(_pad_first(slopes, 1, 1, 0.0) + _UNIT_SLOPE)

    inner_knots = (y_knots if inverse else x_knots)[1:-1]
    index = (point >= inner_knots).sum(0, keepdim=True)
    x0, y0 = _take(x_knots, index), _take(y_knots, index)
    w, h = _take(widths, index), _take(heights, index)
    d0, d1 = _take(slopes, index), _take(slopes, index + 1)
    s = h / w
    bend = d0 + d1 - 2 * s

    if inverse:
        rise = point - y0
        a = rise * bend + h * (s - d0)
        b = h * d0 - rise * bend
        c = -s * rise
        xi = 2 * c / (-b - torch.sqrt((b.square() - 4 * a * c).clamp(min=1e-12)))
    else:
        xi = (point - x0) / w
    hump = xi * (1 - xi)
    chord = s + bend * hump
    outputs = x0 + xi * w if inverse else y0 + h * (s * xi.square() + d0 * hump) / chord
    bow = d1 * xi.square() + 2 * s * hump + d0 * (1 - xi).square()
    log_slope = torch.log(bow * (s / chord).square())
    if inverse:
        log_slope = -log_slope
    return torch.where(inside, outputs, inputs), torch.where(inside, log_slope, 0.0)


def _knots(sizes: Tensor, tail_bound: float) -> tuple[Tensor, Tensor]:
    """Return the knots, shape `(bins + 1, ...)`, and bin sizes, `(bins, ...)`."""
    sizes = MIN_BIN + (1 - MIN_BIN * len(sizes)) * softmax(sizes, 0)
    sizes = 2 * tail_bound * sizes
    return _pad_first(sizes.cumsum(0), 1, 0, 0.0) - tail_bound, sizes


def _pad_first(values: Tensor, before: int, after: int, value: float) -> Tensor:
    return pad(values, (0, 0) * (values.ndim - 1) + (before, after), value=value)


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(0, index).squeeze(0)
