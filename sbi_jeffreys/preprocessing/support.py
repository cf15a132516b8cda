"""The map between a prior's support and standardised, unconstrained space."""

import warnings
from math import expm1, inf, log, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbi_jeffreys.preprocessing.bounds import Bounds, bounds_of
from sbi_jeffreys.preprocessing.prior_copies import on_cpu, unvalidated
from sbi_jeffreys.preprocessing.scaling import location_and_scale
from sbi_jeffreys.preprocessing.true_support import (
    is_exact,
    unnormalised_log_prob,
)

SOFTNESS = 0.1
"""Width of an interval's rounded edges, in standard deviations of a uniform."""

MAX_LOG_DISTANCE = 40.0
"""Largest log distance of a sample from the end of a half line. The square of such a
distance is still finite in single precision."""

ROUNDING = 1e-3
"""Largest error of a bound, as a fraction of its interval."""

_WIDTH = 2 * sqrt(3)  # of an interval whose uniform distribution has unit variance


class Support(nn.Module):
    r"""Bijection between $\prod_d (low_d, high_d)$ and standardised $R^D$.

    Each parameter is mapped separately. The map depends on which bounds are finite:

    - neither: $v = \theta$;
    - one: $v = \log(\theta - low)$ or $v = -\log(high - \theta)$;
    - both: with $t = (\theta - low) / (high - low)$, $W = 2\sqrt{3}$ and softness $s$,

      .. math:: v = W (t - 1/2)
          + s [\log(1 - e^{-Wt/s}) - \log(1 - e^{-W(1-t)/s})],

      which is the identity inside and logistic at the edges. It tends to a hard clip as
      $s \to 0$ and to the logit as $s \to \infty$.

    Parameters of `is_log` are mapped like this after their logarithm was taken.

    Then $u = (v - loc) / scale$. Each direction of the map computes the Jacobian from its
    own input, so a draw that is rounded onto a bound keeps a finite density.

    Attributes:
        is_exact: False if the prior's support is not such a product, and this map only
            standardises in its place.
    """

    low: Tensor
    high: Tensor
    is_log: Tensor
    loc: Tensor
    scale: Tensor
    _interval: Tensor
    _above: Tensor
    _below: Tensor
    _low: Tensor
    _high: Tensor
    _span: Tensor

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        softness: float = SOFTNESS,
        is_log: Tensor | None = None,
    ) -> None:
        """
        Args:
            low: Lower bounds, shape `(D,)`. Minus infinity stands for no bound.
            high: Upper bounds, shape `(D,)`. Infinity stands for no bound.
            softness: $s$ above, a positive number.
            is_log: Intervals of positive numbers to map on a log scale, booleans of shape
                `(D,)`; by default none.

        Raises:
            ValueError: If the bounds do not describe D non-empty intervals.
        """
        super().__init__()
        if low.ndim != 1 or low.shape != high.shape or not bool((low < high).all()):
            raise ValueError(
                "Expected `low` and `high` of one shape (D,) with low < high, "
                f"got low={low.tolist()} and high={high.tolist()}."
            )
        has_low, has_high = low.isfinite(), high.isfinite()
        self.softness = softness
        if is_log is None:
            is_log = torch.zeros_like(has_low)
        self.register_buffer("is_log", is_log.clone(), persistent=False)
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        self.register_buffer("loc", torch.zeros_like(low))
        self.register_buffer("scale", torch.ones_like(low))
        # Finite numbers replace infinite bounds: unused branches must not yield NaN
        # gradients.
        self.register_buffer("_interval", has_low & has_high)
        self.register_buffer("_above", has_low & ~has_high)
        self.register_buffer("_below", ~has_low & has_high)
        low, high = (torch.where(is_log, end.log(), end) for end in (low, high))
        self.register_buffer("_low", torch.where(has_low, low, 0.0))
        self.register_buffer("_high", torch.where(has_high, high, 0.0))
        self.register_buffer("_span", torch.where(self._interval, high - low, 1.0))
        self.is_exact = True
        self._has_log = bool(is_log.any())
        self._has_interval = bool(self._interval.any())
        self._has_half_line = bool((self._above | self._below).any())

    def standardize(self, theta: Tensor) -> "Support":
        """Set `loc` and `scale` so that `theta`, shape `(N, D)`, has unit variance.

        A parameter that does not vary keeps the scale 1; see `scaling.varies`.
        """
        self.loc.zero_()
        self.scale.fill_(1.0)
        v, _ = self.forward(theta)
        loc, scale = location_and_scale(v)
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        return self

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return $u$, shape `(..., D)`, and $\log|du/d\theta|$ summed over D, `(...)`.

        Points on a bound or outside of it are first moved just inside.
        """
        theta, log_det = self._natural(theta), torch.zeros_like(theta)
        v = theta
        if self._has_interval:
            left = self._fraction(theta - self._low)
            right = self._fraction(self._high - theta)
            inner = _WIDTH / 2 * (left - right) + self.softness * (
                self._log_edge(left) - self._log_edge(right)
            )
            v = torch.where(self._interval, inner, v)
            log_slope = self._log_slope(
                softplus(-(inner + _WIDTH / 2) / self.softness),
                softplus((inner - _WIDTH / 2) / self.softness),
            )
            log_det = torch.where(self._interval, log_slope, log_det)
        if self._has_half_line:
            up, down = self._log_distances(theta)
            v = torch.where(self._above, up, torch.where(self._below, -down, v))
            log_det = log_det - up - down
        if self._has_log:
            log_det = torch.where(self.is_log, log_det - theta, log_det)
        u = (v - self.loc) / self.scale
        return u, (log_det - self.scale.log()).sum(-1)

    def inverse(self, u: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return $\theta$, shape `(..., D)`, and $\log|du/d\theta|$ summed over D.

        Every $\theta$ lies strictly inside the bounds.
        """
        v = u * self.scale + self.loc
        theta, log_det = v, torch.zeros_like(v)
        if self._has_interval:
            p = (v + _WIDTH / 2) / self.softness
            q = (v - _WIDTH / 2) / self.softness
            # The default threshold, beyond which torch rounds softplus(x) to x, is too
            # low for this precision.
            over_low, over_high = softplus(p, threshold=40), softplus(q, threshold=40)
            t = self.softness / _WIDTH * (over_low - over_high)
            theta = torch.where(self._interval, self._low + t * self._span, theta)
            log_slope = self._log_slope(over_low - p, over_high)
            log_det = torch.where(self._interval, log_slope, log_det)
        if self._has_half_line:
            up = torch.where(self._above, v, 0.0)
            down = torch.where(self._below, -v, 0.0)
            rise, fall = (v.clamp(max=MAX_LOG_DISTANCE).exp() for v in (up, down))
            theta = torch.where(self._above, self._low + rise, theta)
            theta = torch.where(self._below, self._high - fall, theta)
            log_det = log_det - up - down
        if self._has_log:
            log_det = torch.where(self.is_log, log_det - theta, log_det)
            theta = torch.where(self.is_log, theta.clamp(max=88).exp(), theta)
        return self.inside(theta), (log_det - self.scale.log()).sum(-1)

    def is_outside(self, theta: Tensor) -> Tensor:
        """Return whether points, `(..., D)`, are outside of the bounds, shape `(...)`."""
        return ((theta < self.low) | (theta > self.high)).any(-1)

    def inside(self, theta: Tensor) -> Tensor:
        """Move points on a bound or outside of it to the next normal number inside."""
        tiny = torch.finfo(theta.dtype).tiny
        low, high = self.low.to(theta.dtype), self.high.to(theta.dtype)
        first = torch.maximum(torch.nextafter(low, high), low + tiny)
        last = torch.minimum(torch.nextafter(high, low), high - tiny)
        return theta.clamp(first, last)

    def away_from_bounds(self, theta: Tensor, part: float) -> Tensor:
        """Move points in the margins of an interval to the inner edge of the margin.

        Args:
            theta: Shape `(..., D)`. Points outside of the bounds stay where they are.
            part: Width of each margin, as a fraction of the interval.
        """
        span = self.high - self.low
        margin = torch.where(self._interval & ~self.is_log, part * span, 0.0)
        moved = theta.clamp(self.low + margin, self.high - margin)
        if self._has_log:
            ratio = (part * self._span).exp()
            within = theta.clamp(self.low * ratio, self.high / ratio)
            moved = torch.where(self.is_log, within, moved)
        return torch.where(self.is_outside(theta).unsqueeze(-1), theta, moved)

    def log_half_lines(self, theta: Tensor) -> Tensor:
        """Return θ with parameters on half lines replaced by their log distances.

        Networks see parameters in this form. Parameters on intervals and on the whole
        line stay as they are, and those on half lines lose their long tails. Parameters
        of `is_log` are replaced by their logarithms.
        """
        theta = self._natural(theta)
        if not self._has_half_line:
            return theta
        up, down = self._log_distances(theta)
        return torch.where(self._above, up, torch.where(self._below, -down, theta))

    def _natural(self, theta: Tensor) -> Tensor:
        """Return θ with its logarithm where `is_log`."""
        if not self._has_log:
            return theta
        tiny = torch.finfo(theta.dtype).tiny
        return torch.where(self.is_log, theta.clamp(min=tiny).log(), theta)

    def _log_distances(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return logs of distances from the ends of half lines, zero elsewhere."""
        up = torch.where(self._above, theta - self._low, 1.0)
        down = torch.where(self._below, self._high - theta, 1.0)
        tiny = torch.finfo(theta.dtype).tiny
        return up.clamp(min=tiny).log(), down.clamp(min=tiny).log()

    def _fraction(self, distance: Tensor) -> Tensor:
        """Return a distance from a bound as a positive fraction of the interval."""
        fraction = torch.where(self._interval, distance / self._span, 0.5)
        return fraction.clamp(torch.finfo(distance.dtype).tiny, 1)

    def _log_edge(self, t: Tensor) -> Tensor:
        r"""Return $\log(1 - e^{-Wt/s})$."""
        return torch.log(-torch.expm1(-_WIDTH / self.softness * t))

    def _log_slope(self, below_low: Tensor, over_high: Tensor) -> Tensor:
        r"""Return $\log|dv/d\theta|$ on an interval.

        It follows from $dt/dv = [\sigma((v + W/2)/s) - \sigma((v - W/2)/s)] / W$, which
        is a constant times $\sigma((v + W/2)/s)\, \sigma((W/2 - v)/s)$.

        Args:
            below_low: $\log(1 + e^{-(v + W/2)/s})$.
            over_high: $\log(1 + e^{(v - W/2)/s})$.
        """
        s = self.softness
        constant = log(_WIDTH) - log(-expm1(-_WIDTH / s))
        return below_low + over_high + (constant - self._span.log())


def support_of(prior: Any, theta: Tensor) -> Support:
    """Return the map for the prior's support, standardised by `theta`.

    Args:
        prior: A distribution over `(D,)`, or None.
        theta: Parameters that give the standardisation, shape `(N, D)`.

    Returns:
        The bijection. If the support is not known, or is not a product of intervals, half
        lines and lines, the map only standardises. Samples can then leave the support, as
        they can in `sbi`, and are rejected. A warning says so, unless `prior` is None.
    """
    dim = theta.shape[-1]
    infinite = torch.full((dim,), inf)
    unbounded = Bounds(-infinite, infinite, infinite < 0)
    bounds = unbounded if prior is None else bounds_of(prior, dim)
    if bounds is None:
        warnings.warn(
            f"The support of the prior ({type(prior).__name__}) is not a product of "
            "intervals. Parameters are only standardised, and the base of the energy is "
            "a Gaussian. Samples outside of the prior are rejected, as in sbi's NPE.",
            stacklevel=2,
        )
    if prior is not None and bounds is not None and not is_exact(prior):
        low, high = _rounded_inwards(prior, bounds.low, bounds.high, theta[0])
        bounds = bounds._replace(low=low, high=high)
    low, high, is_log = bounds or unbounded
    support = Support(
        low.to(theta), high.to(theta), is_log=is_log.to(theta.device)
    ).standardize(theta)
    support.is_exact = bounds is not None
    return support


@torch.no_grad()
def _rounded_inwards(
    prior: Any, low: Tensor, high: Tensor, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Move the bounds of intervals to where the prior's density is positive.

    A bound that came through a transform may be outside of the prior by its rounding.

    Args:
        prior: A distribution.
        low: Lower bounds, shape `(D,)`.
        high: Upper bounds, shape `(D,)`.
        theta: Parameters inside the prior, shape `(D,)`.
    """
    prior = on_cpu(unvalidated(prior))
    theta, low, high = theta.cpu(), low.to(theta.dtype), high.to(theta.dtype)
    low, high = low.clone(), high.clone()
    for d in (low.isfinite() & high.isfinite()).nonzero()[:, 0].tolist():
        span = high[d] - low[d]
        for bound, other in ((low, high), (high, low)):
            spacing = torch.nextafter(bound[d], other[d]) - bound[d]
            steps = spacing * 2.0 ** torch.arange(140)
            steps = steps[steps.abs() < ROUNDING * span]
            points = theta.repeat(len(steps), 1)
            points[:, d] = bound[d] + steps
            inside = unnormalised_log_prob(prior, points) > -inf
            if bool(inside.any()) and not bool(inside[0]):
                bound[d] += steps[inside.int().argmax()]
    return low, high
