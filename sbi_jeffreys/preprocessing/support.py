"""The map between a prior's support and standardised, unconstrained space."""

import warnings
from math import expm1, inf, log, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

SOFTNESS = 0.1
"""Width of an interval's rounded edges, in standard deviations of a uniform."""

MAX_LOG_DISTANCE = 40.0
"""How far a sample may be from the end of a half line: its square is still finite."""

_WIDTH = 2 * sqrt(3)  # of an interval whose uniform distribution has unit variance


class Support(nn.Module):
    r"""Bijection between $\prod_d (low_d, high_d)$ and standardised $R^D$.

    Each parameter is mapped by itself, according to which of its bounds are finite:

    - none: $v = \theta$;
    - one: $v = \log(\theta - low)$, or $v = -\log(high - \theta)$;
    - both: with $t = (\theta - low) / (high - low)$, $W = 2\sqrt{3}$, softness $s$,

      .. math:: v = W (t - 1/2)
          + s [\log(1 - e^{-Wt/s}) - \log(1 - e^{-W(1-t)/s})],

      the identity inside and logistic at the edges. A hard clip as $s \to 0$, the logit
      as $s \to \infty$.

    Then $u = (v - loc) / scale$. `is_exact` is False where it stands in for a support
    that is none of these. Jacobians are evaluated from the side a point comes
    from, so a draw that rounds onto a bound keeps a finite density.
    """

    low: Tensor
    high: Tensor
    loc: Tensor
    scale: Tensor
    _interval: Tensor
    _above: Tensor
    _below: Tensor
    _low: Tensor
    _high: Tensor
    _span: Tensor

    def __init__(self, low: Tensor, high: Tensor, softness: float = SOFTNESS) -> None:
        """
        Args:
            low: Lower bounds, shape `(D,)`; minus infinity where there is none.
            high: Upper bounds, shape `(D,)`; infinity where there is none.
            softness: $s$ above, positive.

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
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        self.register_buffer("loc", torch.zeros_like(low))
        self.register_buffer("scale", torch.ones_like(low))
        # Finite stand-ins for infinite bounds, lest unused branches yield NaN gradients.
        self.register_buffer("_interval", has_low & has_high)
        self.register_buffer("_above", has_low & ~has_high)
        self.register_buffer("_below", ~has_low & has_high)
        self.register_buffer("_low", torch.where(has_low, low, 0.0))
        self.register_buffer("_high", torch.where(has_high, high, 0.0))
        self.register_buffer("_span", torch.where(self._interval, high - low, 1.0))
        self.is_exact = True
        self._has_interval = bool(self._interval.any())
        self._has_half_line = bool((self._above | self._below).any())

    def standardize(self, theta: Tensor) -> "Support":
        """Set `loc` and `scale` so that `theta`, shape `(N, D)`, has unit variance.

        A parameter that does not vary keeps the scale 1.
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

        Points on a bound or outside are moved just inside.
        """
        v, log_det = theta, torch.zeros_like(theta)
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
            # torch rounds softplus(x) to x beyond a threshold, by default too soon.
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
        return self.inside(theta), (log_det - self.scale.log()).sum(-1)

    def is_outside(self, theta: Tensor) -> Tensor:
        """Return whether points `(..., D)` are outside of the bounds, shape `(...)`."""
        return ((theta < self.low) | (theta > self.high)).any(-1)

    def inside(self, theta: Tensor) -> Tensor:
        """Move points on a bound or outside to the next normal number inside."""
        tiny = torch.finfo(theta.dtype).tiny
        low, high = self.low.to(theta.dtype), self.high.to(theta.dtype)
        first = torch.maximum(torch.nextafter(low, high), low + tiny)
        last = torch.minimum(torch.nextafter(high, low), high - tiny)
        return theta.clamp(first, last)

    def away_from_bounds(self, theta: Tensor, part: float) -> Tensor:
        """Move points that are next to a bound of an interval to where it ends.

        Args:
            theta: Shape `(..., D)`; outside of the bounds nothing is moved.
            part: Of the interval, that counts as next to either bound.
        """
        margin = torch.where(self._interval, part * self._span, 0.0)
        moved = theta.clamp(self.low + margin, self.high - margin)
        return torch.where(self.is_outside(theta).unsqueeze(-1), theta, moved)

    def log_half_lines(self, theta: Tensor) -> Tensor:
        """Return θ with the parameters on half lines on their log scale.

        What a network should see: intervals as they are, but no long tails.
        """
        if not self._has_half_line:
            return theta
        up, down = self._log_distances(theta)
        return torch.where(self._above, up, torch.where(self._below, -down, theta))

    def _log_distances(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Logs of the distances from the ends of half lines, zero elsewhere."""
        up = torch.where(self._above, theta - self._low, 1.0)
        down = torch.where(self._below, self._high - theta, 1.0)
        tiny = torch.finfo(theta.dtype).tiny
        return up.clamp(min=tiny).log(), down.clamp(min=tiny).log()

    def _fraction(self, distance: Tensor) -> Tensor:
        """A distance from a bound, as a positive fraction of the interval."""
        fraction = torch.where(self._interval, distance / self._span, 0.5)
        return fraction.clamp(torch.finfo(distance.dtype).tiny, 1)

    def _log_edge(self, t: Tensor) -> Tensor:
        r"""$\log(1 - e^{-Wt/s})$."""
        return torch.log(-torch.expm1(-_WIDTH / self.softness * t))

    def _log_slope(self, below_low: Tensor, over_high: Tensor) -> Tensor:
        r"""$\log|dv/d\theta|$ on an interval, for which
        $dt/dv = [\sigma((v + W/2)/s) - \sigma((v - W/2)/s)] / W$, a constant times
        $\sigma((v + W/2)/s)\, \sigma((W/2 - v)/s)$.

        Args:
            below_low: $\log(1 + e^{-(v + W/2)/s})$.
            over_high: $\log(1 + e^{(v - W/2)/s})$.
        """
        s = self.softness
        constant = log(_WIDTH) - log(-expm1(-_WIDTH / s))
        return below_low + over_high + (constant - self._span.log())


def location_and_scale(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each entry of `theta`, shape `(N, ...)`.

    One that does not vary, but for rounding, gets the scale 1.
    """
    if len(theta) < 2:
        return theta.mean(0), torch.ones_like(theta[0])
    spread = theta - theta[0]
    size = spread.abs().amax(0)  # 1 / size is of order one, whatever the units are
    varies = size > 1e-7 * theta.abs().amax(0)
    size = torch.where(varies, size, 1.0)
    loc, scale = theta.mean(0), size * (spread / size).std(0)
    return loc, torch.where(varies, scale, 1.0)


def support_of(prior: Any, theta: Tensor) -> Support:
    """Return the map for the prior's support, standardised by `theta`.

    Args:
        prior: A distribution over `(D,)`, or None.
        theta: Parameters from which scales are taken, shape `(N, D)`.

    Returns:
        The bijection. Where the prior's support is not a product of intervals, half
        lines and lines, or is not known, one that only standardises: samples can then
        leave the support, as they can in `sbi`, which rejects them. A warning says so,
        except where there is no prior to ask.
    """
    dim = theta.shape[-1]
    unbounded = torch.full((dim,), -inf), torch.full((dim,), inf)
    bounds: tuple[Tensor, Tensor] | None = unbounded
    if prior is not None:
        try:
            bounds = _bounds(prior.support, dim)
        except (AttributeError, NotImplementedError):
            bounds = None
    if bounds is None:
        warnings.warn(
            f"The support of the prior ({type(prior).__name__}) is not a product of "
            "intervals: parameters are only standardised, and the energy starts from a "
            "Gaussian. Samples outside of the prior are rejected, as in sbi's NPE.",
            stacklevel=2,
        )
    low, high = (bound.to(theta) for bound in bounds or unbounded)
    support = Support(low, high).standardize(theta)
    support.is_exact = bounds is not None
    return support


def _bounds(constraint: Any, dim: int) -> tuple[Tensor, Tensor] | None:
    """Return the D lower and upper bounds that a support consists of, or None."""
    if constraint.is_discrete:
        return None
    if hasattr(constraint, "base_constraint"):  # independent, or a mixture of one family
        return _bounds(constraint.base_constraint, dim)
    if isinstance(constraint, constraints.cat):
        lows, highs = [], []
        for part, length in zip(constraint.cseq, constraint.lengths, strict=True):
            bounds = _bounds(part, length)
            if bounds is None:
                return None
            lows.append(bounds[0])
            highs.append(bounds[1])
        return torch.cat(lows), torch.cat(highs)
    sides = [getattr(constraint, f"{side}_bound", None) for side in ("lower", "upper")]
    if sides == [None, None] and not isinstance(constraint, type(constraints.real)):
        return None
    low, high = (
        torch.as_tensor(default if bound is None else bound, device="cpu")
        .reshape(-1)
        .expand(dim)
        for bound, default in zip(sides, (-inf, inf), strict=True)
    )
    return low, high
