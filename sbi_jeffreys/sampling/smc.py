r"""Draws from densities that the flow is far from, by way of others in between.

The flow knows one observation at a time, and no draw of it may come close to the joint
posterior of many. So particles go through

    q_t(θ) ∝ p(θ) exp(t Σ_i r(θ, x_i)),        t from 1/n to 1:

the first is about as wide as the posterior of one observation, the last is the joint
posterior. A step in t weighs and resamples the particles; Metropolis moves spread them
out again. This is a sequential Monte Carlo sampler (Del Moral, Doucet & Jasra, 2006),
with moves by differential evolution (ter Braak, 2006), one half of the particles by the
other. Where hardly any draw of the flow has a weight under the first of these, they get
there in the same way, on the geometric path from flow to energy; and so do the draws for
one observation.
"""

from collections.abc import Callable
from math import ceil, log, sqrt
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_jeffreys.posteriors.potential import EnergyPotential
from sbi_jeffreys.posteriors.sbi_samplers import FlowProposal
from sbi_jeffreys.preprocessing.support import Support
from sbi_jeffreys.sampling.importance import effective_sample_size, resample
from sbi_jeffreys.sampling.psis import pareto_smoothed

MIN_PARTICLES = 1_000
"""Particles that are tempered, however few samples are asked for."""

MIN_ESS = 0.5
"""Fraction of the effective sample size that a step in t keeps."""

LEAST_EFFECTIVE = 100.0
"""Effective draws that particles for one observation are chosen from, at least."""

MIN_ACCEPTED, ACCEPTED_PER_PARAMETER = 4.0, 0.5
"""Accepted moves per particle, on average, after which particles count as spread out:
the second for each parameter, but the first at least."""

ATTEMPTS_PER_ACCEPTED = 15
"""Attempts at moves, for each accepted one that is wanted, before giving up."""


Ends: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The logs of two densities, in nats, shape `(num, batch)`, of `(num, batch, D)`."""


class Particles(NamedTuple):
    """Weighted draws, and what was found on the way to them.

    Attributes:
        theta: Shape `(num, batch, D)`.
        log_weights: Not normalised, of the last step, `(num, batch)`.
        log_z: Estimate of log Z in nats, `(batch,)`.
        log_z_se: Its standard error, as if moves made the particles independent.
        pareto_k: The largest shape k̂ of the weights' tails, of all steps, `(batch,)`.
    """

    theta: Tensor
    log_weights: Tensor
    log_z: Tensor
    log_z_se: Tensor
    pareto_k: Tensor


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

    Returns:
        Particles of a batch of one.

    Raises:
        RuntimeError: If no draw of the flow is inside of the prior's support.
        FloatingPointError: If the energy is NaN or infinite.
    """
    n, support = len(potential.x_o), potential.energy.support

    def single(theta: Tensor) -> tuple[Tensor, Tensor]:
        """From q_{1/n} to the joint posterior."""
        log_prior, log_ratios = _parts(potential, theta.flatten(0, 1))
        ends = log_prior + log_ratios / n, log_prior + log_ratios
        return ends[0].reshape(theta.shape[:2]), ends[1].reshape(theta.shape[:2])

    def flow(theta: Tensor) -> tuple[Tensor, Tensor]:
        """From the flow to q_{1/n}."""
        log_flow = proposal.log_prob(theta.flatten(0, 1))
        return log_flow.reshape(theta.shape[:2]), single(theta)[0]

    theta = proposal.sample((num,)).unsqueeze(1)
    log_weights = log_ratio(flow, theta)
    if bool(log_weights.isneginf().all()):
        raise RuntimeError("No draw of the flow is inside of the prior's support.")
    first = annealed(flow, support, theta, log_weights, num, MIN_ESS * num)
    if n == 1:
        return first
    theta = resample_and_move(lambda theta: single(theta)[0], support, first, num)
    log_weights = log_ratio(single, theta)
    last = annealed(
        single, support, theta, log_weights, num, MIN_ESS * num, show_progress
    )
    return last._replace(
        log_z=first.log_z + last.log_z,
        log_z_se=torch.hypot(first.log_z_se, last.log_z_se),
        pareto_k=torch.maximum(first.pareto_k, last.pareto_k),
    )


@torch.no_grad()
def annealed(
    ends: Ends,
    support: Support,
    theta: Tensor,
    log_weights: Tensor,
    num: int,
    least: float,
    show_progress: bool = False,
) -> Particles:
    r"""Go from one density to another by way of $q_0^{1 - t} q_1^t$, t from 0 to 1.

    Args:
        ends: The logs of both, which need not be normalised; that of the first is finite.
        support: The map to unconstrained space, in which particles move.
        theta: Draws from the first, shape `(draws, batch, D)`.
        log_weights: Of these under the second, `(draws, batch)`: the `log_ratio`.
        num: Particles to go on with where one step is too long.
        least: Effective draws that the first step keeps; later ones keep `MIN_ESS`.
        show_progress: Whether to show how far t has come.

    Returns:
        Draws, with the weights of the last step: those given, if it was the first. log Z
        is the difference of the two normalisers.

    Raises:
        FloatingPointError: If a density is NaN or infinitely large.
    """
    t, log_z, variance = 0.0, log_weights.new_zeros(()), log_weights.new_zeros(())
    pareto_k = torch.full_like(log_weights[0], -torch.inf)
    with tqdm(desc="Tempering", total=1.0, disable=not show_progress) as progress:
        while True:
            rest = 1 - t
            step = _longest_step(log_weights, rest, least)
            t, log_weights = t + step, step * log_weights
            more, its_variance = _log_mean(log_weights)
            log_z, variance = log_z + more, variance + its_variance
            tails = pareto_smoothed(log_weights.double().T.cpu().numpy())[1]
            pareto_k = torch.maximum(pareto_k, torch.from_numpy(tails).to(pareto_k))
            progress.update(step)
            particles = Particles(
                theta, log_weights, log_z, variance.clamp(min=0).sqrt(), pareto_k
            )
            if step == rest:
                return particles

            def between(theta: Tensor, t: float = t) -> Tensor:
                start, end = ends(theta)
                return (1 - t) * start + t * end

            theta, least = (
                resample_and_move(between, support, particles, num),
                MIN_ESS * num,
            )
            log_weights = log_ratio(ends, theta)


def log_ratio(ends: Ends, theta: Tensor) -> Tensor:
    """Return the log of the second density over the first, in nats, `(num, batch)`.

    Raises:
        FloatingPointError: If it is NaN or infinitely large.
    """
    start, end = ends(theta)
    return _checked(end - start)


@torch.no_grad()
def resample_and_move(
    log_density: Callable[[Tensor], Tensor],
    support: Support,
    particles: Particles,
    num: int,
) -> Tensor:
    """Return draws of equal weight, moved apart under a density, `(num, batch, D)`."""
    chosen = resample(particles.log_weights, num, replacement=True)
    theta = particles.theta.take_along_dim(chosen.unsqueeze(-1), 0)
    return move_particles(log_density, support, theta)


@torch.no_grad()
def move_particles(
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
    enough = max(MIN_ACCEPTED, ACCEPTED_PER_PARAMETER * u.shape[-1])
    for _ in range(ceil(ATTEMPTS_PER_ACCEPTED * enough)):
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
        if bool((accepted >= enough).all()):
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
    """Return the log of mean weights, in nats, and the variance of that estimate."""
    num = len(log_weights)
    ess = effective_sample_size(log_weights)
    return log_weights.logsumexp(0) - log(num), (1 / ess - 1 / num).to(log_weights)


def _longest_step(log_weights: Tensor, most: float, least: float) -> float:
    """Return the longest step in t that leaves `least` effective draws in each column.

    Or the part `MIN_ESS` of those that have any weight, if they are fewer.
    """
    enough = (MIN_ESS * log_weights.isfinite().sum(0)).clamp(max=least)

    def is_short(step: float) -> bool:
        return bool((effective_sample_size(step * log_weights) >= enough).all())

    if is_short(most):
        return most
    low, high = 0.0, most
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_short(middle) else (low, middle)
    return high
