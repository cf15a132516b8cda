"""Monotone rational-quadratic splines without data-dependent shapes."""

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
    r"""Monotone spline on [-tail_bound, tail_bound], the identity outside.

    With $\xi \in [0, 1]$ the position in a bin of width $w$, height $h$, chord $s = h/w$
    and end slopes $d_0, d_1$,

    .. math:: g(\xi) = g_0 + h \frac{s \xi^2 + d_0 \xi (1 - \xi)}
        {s + (d_0 + d_1 - 2s) \xi (1 - \xi)}

    (Durkan et al. 2019, arXiv:1906.04032, eqs. 4 and 5; the inverse solves a quadratic).
    Bins come first, so that every operation runs over contiguous memory. Gradients are
    written out, for speed; they can't be differentiated again.

    Args:
        inputs: Points, shape `(...)`.
        sizes: Unnormalised bin widths and heights, shape `(2, bins, ...)`.
        slopes: Unnormalised slopes at the inner knots, shape `(bins - 1, ...)`; where
            these and the sizes are zero, the spline is the identity.
        tail_bound: Half the length of the interval, positive.
        inverse: Whether to evaluate the inverse of the spline.

    Returns:
        The outputs, and the log derivative of outputs by inputs, both of shape `(...)`.
    """
    return _Spline.apply(inputs, sizes, slopes, tail_bound, inverse)


class _Bin(NamedTuple):
    """Lower left corner, size, and slopes at the ends of a bin."""

    x0: Tensor
    y0: Tensor
    w: Tensor
    h: Tensor
    d0: Tensor
    d1: Tensor


class _Curve(NamedTuple):
    """What g and its derivatives are made of, at the position ξ in a bin."""

    xi: Tensor
    rest: Tensor  # 1 − ξ
    hump: Tensor  # ξ (1 − ξ)
    s: Tensor
    bend: Tensor  # d0 + d1 − 2 s
    chord: Tensor  # the denominator of g
    rise: Tensor  # (g − g0) / h
    bow: Tensor  # g' (chord / s)²
    slope: Tensor  # g'


def _curve(bin: _Bin, point: Tensor, inverse: bool) -> _Curve:
    """Return the curve at ξ(x), or where g(ξ) = y."""
    s = bin.h / bin.w
    bend = bin.d0 + bin.d1 - 2 * s
    if inverse:
        above = point - bin.y0
        bent = above * bend
        a = bent + bin.h * (s - bin.d0)
        b = bin.h * bin.d0 - bent
        c = 2 * above * s
        xi = c / (b + (b.square() + 2 * a * c).clamp_(min=1e-12).sqrt_())
    else:
        xi = (point - bin.x0) / bin.w
    rest = 1 - xi
    hump = xi * rest
    chord = torch.addcmul(s, bend, hump)
    s_xi, d0_rest = s * xi, bin.d0 * rest
    rise = xi * (s_xi + d0_rest) / chord
    bow = xi * torch.addcmul(s_xi, bin.d1 - s, xi) + rest * (d0_rest + 2 * s_xi)
    slope = bow * (s / chord).square_()
    return _Curve(xi, rest, hump, s, bend, chord, rise, bow, slope)


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
        free = 2 * tail_bound - num_bins * least  # what the softmax distributes
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
        corner = index.to(inputs.dtype) * least - tail_bound + free * before
        size = least + free * share
        raw_slopes = pad(slopes, (0, 0) * inputs.ndim + (1, 1)).gather(
            0, torch.cat([index, index + 1])
        )
        slope = MIN_SLOPE + softplus(raw_slopes.add_(_UNIT_SLOPE))
        bin = _Bin(*corner, *size, *slope)

        curve = _curve(bin, point, inverse)
        log_slope = curve.slope.log()
        if inverse:
            outputs, log_slope = torch.addcmul(bin.x0, curve.xi, bin.w), -log_slope
        else:
            outputs = torch.addcmul(bin.y0, bin.h, curve.rise)
        ctx.save_for_backward(
            inside, passed, index, shares, share, before, raw_slopes, size, slope, *curve
        )
        return torch.where(inside, outputs, inputs), torch.where(inside, log_slope, 0.0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_outputs: Tensor, grad_log_slope: Tensor
    ) -> tuple[Tensor | None, ...]:
        r"""Gradients by the partial derivatives of $g$ and of $\ell = \log g'$.

        For a parameter b of the bin, the gradient is $\alpha \partial_b g + \beta
        \partial_b \ell$. In the inverse direction, $x = g^{-1}(y)$ moves by
        $(dy - \partial_b g\, db) / g'$, which gives another $\alpha$.
        """
        inside, passed, index, shares, share, before, raw_slopes, (w, h), *rest = (
            ctx.saved_tensors
        )
        (d0, d1), xi, rest, hump, s, bend, chord, rise, bow, slope = rest

        lean = 1 - 2 * xi
        half_bow_xi = d1 * xi + s * lean - d0 * rest
        log_slope_x = 2 * (half_bow_xi / bow - bend * lean / chord) / w
        alpha = torch.where(inside, grad_outputs, 0.0)
        beta = torch.where(inside, grad_log_slope, 0.0)
        if ctx.inverse:
            grad_inputs = (alpha - beta * log_slope_x) / slope
            alpha, beta = -grad_inputs, -beta
            grad_x = torch.addcmul(beta * log_slope_x, alpha, slope)
        else:
            grad_inputs = grad_x = torch.addcmul(beta * log_slope_x, alpha, slope)

        pull = alpha * h / chord  # α ∂g / ∂(numerator of g)
        lift = beta / bow  # β ∂ℓ / ∂bow
        sink = pull * rise + 2 * beta / chord  # −(both) by the denominator
        pull_xi, lift_xi = pull * xi, lift * xi
        spread = hump * sink
        grad_d0 = rest * (pull_xi + lift * rest) - spread
        grad_d1 = lift_xi * xi - spread
        grad_s = xi * pull_xi + 2 * (beta / s + lift_xi * rest + spread) - sink
        grad_s = grad_s / w
        grad_size = torch.stack([-grad_x * xi - s * grad_s, alpha * rise + grad_s])
        grad_corner = torch.stack([-grad_x, alpha])

        # A corner is where the bins before it end: through the softmax to all sizes.
        grad_size = grad_size.mul_(ctx.free * share)
        grad_corner = grad_corner.mul_(ctx.free)
        mean = torch.addcmul(grad_size, grad_corner, before)
        grad_sizes = shares * -mean.unsqueeze(1)
        grad_sizes[:, :-1].addcmul_(shares[:, :-1] * passed, grad_corner.unsqueeze(1))
        grad_sizes.scatter_add_(1, index.expand(2, *index.shape), grad_size.unsqueeze(1))

        grad_slope = torch.stack([grad_d0, grad_d1]) * torch.sigmoid(raw_slopes)
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
    """Pick bins `(1, ...)` from `(2, bins, ...)`; return `(2, ...)`."""
    return values.gather(1, index.expand(2, *index.shape)).squeeze(1)
