"""Monotone rational-quadratic splines whose tensor shapes do not depend on the data."""

from math import expm1, log
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, softmax, softplus

MIN_BIN = 1e-3
"""Least width and height of a bin, as a fraction of the interval."""
MIN_SLOPE = 1e-3
"""Least derivative at a knot."""

_UNIT_SLOPE = log(expm1(1 - MIN_SLOPE))  # softplus gives this the slope 1


def rational_quadratic_spline(
    inputs: Tensor,
    sizes: Tensor,
    slopes: Tensor,
    tail_bound: float,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Evaluate a monotone spline on [-tail_bound, tail_bound], the identity outside.

    With $\xi \in [0, 1]$ the position in a bin of width $w$, height $h$, chord $s = h/w$
    and end slopes $d_0, d_1$,

    .. math:: g(\xi) = g_0 + h \frac{s \xi^2 + d_0 \xi (1 - \xi)}
        {s + (d_0 + d_1 - 2s) \xi (1 - \xi)}

    (Durkan et al. 2019, arXiv:1906.04032, eqs. 4 and 5). The inverse solves a quadratic
    equation. Bins are the first axis, so every operation runs over contiguous memory.
    Gradients are written out for speed, and can't be differentiated again.

    Args:
        inputs: Points, shape `(...)`.
        sizes: Unnormalised bin widths and heights, shape `(2, bins, ...)`.
        slopes: Unnormalised slopes at the inner knots, shape `(bins - 1, ...)`. The
            spline is the identity where these and the sizes are zero.
        tail_bound: Half the length of the interval, positive.
        inverse: Whether to evaluate the inverse of the spline.

    Returns:
        The outputs, and the log derivatives of outputs by inputs, both of shape `(...)`.
    """
    return _Spline.apply(inputs, sizes, slopes, tail_bound, inverse)


class _Curve(NamedTuple):
    r"""The curve in a bin, in units of the bin, at a position $\xi$.

    With $e = d / s$ and $q = \xi (1 - \xi)$, $g = g_0 + h R$ and $g' = s M / c^2$, where
    $c = 1 + (e_0 + e_1 - 2) q$, $R = (\xi^2 + e_0 q) / c$ and
    $M = e_1 \xi^2 + 2 q + e_0 (1 - \xi)^2$.
    """

    xi: Tensor
    rest: Tensor  # 1 − ξ
    bend: Tensor  # e0 + e1 − 2
    e0_rest: Tensor
    e1_xi: Tensor
    c: Tensor
    R: Tensor
    M: Tensor
    slope: Tensor  # M / c²


def _solve(e: Tensor, bend: Tensor, rise: Tensor) -> Tensor:
    r"""Return $\xi$ with $R(\xi)$ = rise."""
    b = e[0] - rise * bend
    root = torch.addcmul(b.square(), 1 - b, rise, value=4).clamp_(min=1e-12).sqrt_()
    return 2 * rise / root.add_(b)


def _curve(e: Tensor, bend: Tensor, xi: Tensor) -> _Curve:
    rest = 1 - xi
    c = 1 + bend * (xi * rest)
    e0_rest, e1_xi = e * torch.stack([rest, xi])
    R = xi * (xi + e0_rest) / c
    M = torch.addcmul(xi * torch.add(e1_xi, rest, alpha=2), rest, e0_rest)
    return _Curve(xi, rest, bend, e0_rest, e1_xi, c, R, M, M / c.square())


class _Spline(Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        sizes: Tensor,
        slopes: Tensor,
        tail_bound: float,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        num_bins = sizes.shape[1]
        least = 2 * tail_bound * MIN_BIN
        free = 2 * tail_bound - num_bins * least  # shared out by the softmax
        ctx.free, ctx.inverse = free, inverse

        inside = inputs.abs() < tail_bound
        point = torch.where(inside, inputs, 0.0)
        shares = softmax(sizes, 1)
        ends = shares.cumsum(1)

        inner_ends = ends[1 if inverse else 0, :-1]
        offsets = torch.arange(1, num_bins, dtype=inputs.dtype, device=inputs.device)
        offsets = (offsets * least - tail_bound).view(-1, *[1] * inputs.ndim)
        passed = point >= torch.add(offsets, inner_ends, alpha=free)
        index = passed.sum(0, keepdim=True)

        share = _take(shares, index)
        before = _take(ends, index) - share
        start = index.to(inputs.dtype) * least - tail_bound
        x0, y0 = torch.add(start, before, alpha=free)
        size = free * share + least
        w, h = size
        raw_slopes = pad(slopes, (0, 0) * inputs.ndim + (1, 1)).gather(
            0, torch.cat([index, index + 1])
        )
        raw_slopes += _UNIT_SLOPE
        s = h / w
        e = (softplus(raw_slopes) + MIN_SLOPE) / s
        bend = e.sum(0) - 2

        xi = _solve(e, bend, (point - y0) / h) if inverse else (point - x0) / w
        curve = _curve(e, bend, xi.clamp_(0, 1))  # knots have rounding errors
        slope = s * curve.slope
        if inverse:
            outputs, log_slope = torch.addcmul(x0, xi, w), -slope.log()
        else:
            outputs, log_slope = torch.addcmul(y0, curve.R, h), slope.log()
        ctx.save_for_backward(
            *(inside, passed, index, shares, share, before, raw_slopes, size, s, e),
            *(slope, *curve),
        )
        return torch.where(inside, outputs, inputs), torch.where(inside, log_slope, 0.0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_outputs: Tensor, grad_log_slope: Tensor
    ) -> tuple[Tensor | None, ...]:
        r"""Compute gradients from the derivatives of $g$ and of $\ell = \log g'$.

        With $\alpha$ and $\beta$ the gradients of the two outputs, the gradient of a
        parameter b of the bin is $\alpha \partial_b g + \beta \partial_b \ell$. In the
        inverse direction, $x = g^{-1}(y)$ moves by $(dy - \partial_b g\, db) / g'$, so
        $\alpha$ is replaced.
        """
        inside, passed, index, shares, share, before, *rest = ctx.saved_tensors
        raw_slopes, size, s, e, slope, *rest = rest
        curve = _Curve(*rest)
        (w, h), xi, c = size, curve.xi, curve.c

        lean = 1 - 2 * xi
        half_m_xi = curve.e1_xi - curve.e0_rest + lean
        log_slope_x = 2 * (half_m_xi / curve.M - curve.bend * lean / c) / w
        alpha = torch.where(inside, grad_outputs, 0.0)
        beta = torch.where(inside, grad_log_slope, 0.0)
        if ctx.inverse:
            grad_x = -alpha
            grad_inputs = torch.addcmul(alpha, beta, log_slope_x, value=-1) / slope
            alpha, beta = -grad_inputs, -beta
        else:
            grad_inputs = grad_x = torch.addcmul(alpha * slope, beta, log_slope_x)

        q_c = xi * curve.rest / c
        pull = alpha * h * q_c
        sink = torch.add(pull * curve.R, beta * q_c, alpha=2)
        grad_e = torch.stack([curve.rest, xi]).square_() * (beta / curve.M) - sink
        grad_e[0] += pull
        grad_log_s = beta - (grad_e * e).sum(0)
        grad_size = torch.stack([-grad_log_s, grad_log_s]) / size
        grad_size += torch.stack([-grad_x * xi, alpha * curve.R])
        grad_corner = torch.stack([-grad_x, alpha])

        # A corner is where the bins before it end, so it depends on all sizes.
        grad_size *= ctx.free * share
        grad_corner *= ctx.free
        mean = torch.addcmul(grad_size, grad_corner, before)
        grad_sizes = shares * -mean.unsqueeze(1)
        grad_sizes[:, :-1].addcmul_(shares[:, :-1] * passed, grad_corner.unsqueeze(1))
        grad_sizes.scatter_add_(1, index.expand(2, *index.shape), grad_size.unsqueeze(1))

        grad_slope = grad_e * torch.sigmoid(raw_slopes) / s
        grad_slopes = xi.new_zeros(shares.shape[1] + 1, *xi.shape)
        grad_slopes.scatter_(0, index, grad_slope[:1])
        grad_slopes.scatter_(0, index + 1, grad_slope[1:])
        return (
            torch.where(inside, grad_inputs, grad_outputs),
            grad_sizes,
            grad_slopes[1:-1],
            None,
            None,
        )


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Return the bins at `index`, `(1, ...)`, of `(2, bins, ...)` as `(2, ...)`."""
    return values.gather(1, index.expand(2, *index.shape)).squeeze(1)
