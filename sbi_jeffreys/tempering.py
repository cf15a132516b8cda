r"""Draws from the posterior of several observations, by way of less certain ones.

The flow knows one observation at a time, and no draw of it may come close to the joint
posterior of many. So particles go through

    q_t(θ) ∝ p(θ) exp(t Σ_i r(θ, x_i)),        t from 1/n to 1:

the first is about as wide as the posterior of one observation, the last is the joint
posterior. A step in t weighs and resamples the particles; Metropolis moves spread them
out again. This is a sequential Monte Carlo sampler (Del Moral, Doucet & Jasra, 2006),
with moves by differential evolution (ter Braak, 2006), one half of the particles by the
other. The same moves serve one observation, where few draws of the flow have any weight.
"""

from collections.abc import Callable
from math import log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_jeffreys.correction import effective_sample_size, resample
from sbi_jeffreys.potential import EnergyPotential
from sbi_jeffreys.samplers import FlowProposal
from sbi_jeffreys.support import Support

MIN_PARTICLES = 1_000
"""Particles that are tempered, however few samples are asked for."""

MIN_ESS = 0.5
"""Fraction of the effective sample size that a step in t keeps."""

MIN_ACCEPTED = 4.0
"""Accepted moves per particle, on average, after which particles count as spread out."""

MAX_MOVES = 60
"""Attempts to get there."""


class Particles(NamedTuple):
    """Weighted draws from the joint posterior.

    Attributes:
        theta: Shape `(num, D)`.
        log_prior: Their log prior densities, `(num,)`.
        log_ratio: Their sums of log-ratios, `(num,)`; minus infinity outside the prior.
        log_weights: Not normalised, `(num,)`, of the last step in t.
        log_z: Estimate of log Z in nats, a scalar.
        log_z_se: Its standard error, as if moves made the particles independent.
    """

    theta: Tensor
    log_prior: Tensor
    log_ratio: Tensor
    log_weights: Tensor
    log_z: Tensor
    log_z_se: Tensor


@torch.no_grad()
def temper(
    potential: EnergyPotential,
    proposal: FlowProposal,
    num: int,
    show_progress: bool = False,
) -> Particles:
    r"""Draw from the posterior of the observations that the potential is set to.

    Args:
        potential: $\log p(\theta) + \sum_i r(\theta, x_i)$.
        proposal: The mixture of the flow given each observation.
        num: Number of particles, at least 4.
        show_progress: Whether to show how far t has come.

    Raises:
        RuntimeError: If no draw of the flow is inside of the prior's support.
        FloatingPointError: If the energy is NaN or infinite.
    """
    theta = proposal.sample((num,))
    log_prior, log_ratio = _parts(potential, theta)
    t = 1 / len(potential.x_o)
    log_weights = log_prior + t * log_ratio - proposal.log_prob(theta)
    if bool(log_weights.isneginf().all()):
        raise RuntimeError("No draw of the flow is inside of the prior's support.")
    log_z, variance = _log_mean(log_weights)
    with tqdm(
        desc="Tempering", total=1.0, initial=t, disable=not show_progress
    ) as progress:
        while t < 1:
            chosen = resample(log_weights.unsqueeze(1), num, replacement=True)[:, 0]
            theta = _moved(potential, theta[chosen], t)
            log_prior, log_ratio = _parts(potential, theta)
            step = _longest_step(log_ratio, 1 - t)
            log_weights, t = step * log_ratio, min(t + step, 1.0)
            progress.update(step)
            more, its_variance = _log_mean(log_weights)
            log_z, variance = log_z + more, variance + its_variance
    return Particles(
        theta, log_prior, log_ratio, log_weights, log_z, variance.clamp(min=0).sqrt()
    )


@torch.no_grad()
def spread(potential: EnergyPotential, particles: Particles) -> Tensor:
    """Return as many draws of equal weight, moved apart, shape `(num, D)`."""
    num = len(particles.theta)
    chosen = resample(particles.log_weights.unsqueeze(1), num, replacement=True)[:, 0]
    return _moved(potential, particles.theta[chosen], 1.0)


def _moved(potential: EnergyPotential, theta: Tensor, t: float) -> Tensor:
    """Move particles under q_t, shape `(num, D)`."""

    def log_density(theta: Tensor) -> Tensor:
        log_prior, log_ratio = _parts(potential, theta)
        return log_prior + t * log_ratio

    return moved_apart(log_density, potential.energy.support, theta)


@torch.no_grad()
def moved_apart(
    log_density: Callable[[Tensor], Tensor], support: Support, theta: Tensor
) -> Tensor:
    """Return draws, of which some were the same, moved in unconstrained space.

    A draw is proposed the step from one to another of the other half, scaled as is best
    for a Gaussian, or now and then in full, which leads from mode to mode.

    Args:
        log_density: Returns what is not normalised, in nats, shape `(num, *batch)`, of
            `(num, *batch, D)`. Draws move among those of the same column of the batch.
        support: The map to unconstrained space.
        theta: Draws that have this density, shape `(num, *batch, D)`.

    Raises:
        FloatingPointError: If the density is NaN or infinite.
    """
    theta = theta.clone()
    u, log_det = support(theta)
    values = _checked(log_density(theta)) - log_det
    accepted = torch.zeros_like(values[0])
    for _ in range(MAX_MOVES):
        first, second = torch.randperm(len(u), device=u.device).tensor_split(2)
        for some, others in ((first, second), (second, first)):
            start, end = (others[torch.randperm(len(others))] for _ in range(2))
            start = start.repeat(2)[: len(some)]
            end = end.repeat(2)[: len(some)]
            full = torch.rand(*values[some].shape, 1, device=u.device) < 0.1
            scale = torch.where(full, 1.0, 2.38 / sqrt(2 * u.shape[-1]))
            step = scale * (u[end] - u[start])
            new_u = u[some] + step
            new, log_det = support.inverse(new_u)
            new_values = _checked(log_density(new)) - log_det
            moves = torch.rand_like(new_values).log() < new_values - values[some]
            moves &= (step != 0).any(-1)
            for kept, proposed in ((values, new_values), (u, new_u), (theta, new)):
                moved = moves.reshape(*moves.shape, *[1] * (kept.ndim - moves.ndim))
                kept[some] = torch.where(moved, proposed, kept[some])
            accepted += moves.sum(0) / len(u)
        if bool((accepted >= MIN_ACCEPTED).all()):
            break
    return theta


def _checked(log_density: Tensor) -> Tensor:
    """Return log densities, none of which is NaN or infinitely large."""
    bad = ~(log_density < torch.inf)
    if bool(bad.any()):
        raise FloatingPointError(
            f"The energy is NaN or infinite at {int(bad.sum())} of {bad.numel()} draws."
        )
    return log_density


def _parts(potential: EnergyPotential, theta: Tensor) -> tuple[Tensor, Tensor]:
    values = _checked(potential(theta, track_gradients=False))
    outside = values.isneginf()
    log_prior = torch.where(outside, 0.0, potential.log_prior(theta))
    return log_prior, torch.where(outside, -torch.inf, values - log_prior)


def _log_mean(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the mean weight, in nats, and the variance of that estimate."""
    num = len(log_weights)
    ess = effective_sample_size(log_weights.unsqueeze(1))[0]
    return log_weights.logsumexp(0) - log(num), (1 / ess - 1 / num).to(log_weights)


def _longest_step(log_ratio: Tensor, most: float) -> float:
    """Return the longest step in t that keeps `MIN_ESS` of equal weights effective."""

    def is_short(step: float) -> bool:
        ess = effective_sample_size(step * log_ratio.unsqueeze(1))
        return float(ess) >= MIN_ESS * len(log_ratio)

    if is_short(most):
        return most
    low, high = 0.0, most
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_short(middle) else (low, middle)
    return high
