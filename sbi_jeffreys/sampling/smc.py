r"""Sequential Monte Carlo: from draws of one density to draws of another far from it.

Weighted draws ("particles") go along the geometric path

.. math:: q_t \propto q_0^{1 - t} q_1^t, \qquad 0 \le t \le 1.

Each step in t is as long as the effective sample size allows. It weights and resamples
the particles. Metropolis moves then separate particles that are copies of each other.

Sources: Del Moral, Doucet & Jasra (JRSS B, 2006) for the sampler; ter Braak (Statistics
and Computing, 2006) for the moves by differential evolution. Here one half of the
particles gives the proposals for the other half.
"""

from collections.abc import Callable
from math import ceil, sqrt
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_jeffreys.preprocessing.support import Support
from sbi_jeffreys.sampling.importance_weights import (
    effective_sample_size,
    log_mean_exp,
    log_z_variance,
)
from sbi_jeffreys.sampling.psis import pareto_smoothed
from sbi_jeffreys.sampling.resampling import resample

MIN_PARTICLES = 1_000
"""Smallest number of particles, however few samples are asked for."""

MIN_ESS = 0.5
"""Effective sample size after a step in t, as a fraction of that before it."""

MIN_ACCEPTED, ACCEPTED_PER_PARAMETER = 4.0, 0.5
"""Accepted moves per particle, on average, after which particles count as independent.

The larger of the first number and the second number times the number of parameters."""

ATTEMPTS_PER_ACCEPTED = 15
"""Largest number of attempted moves for each accepted move that is wanted."""

SHARE_OF_FULL_STEPS = 0.1
"""Share of proposals that go the full distance between two particles.

They lead from one mode to another."""

DensityPair: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps parameters `(num, batch, D)` to two log densities in nats, each `(num, batch)`.

The densities are q_0 and q_1 and need not be normalised."""


class Moved(NamedTuple):
    """Particles after Metropolis moves.

    Attributes:
        theta: Shape `(num, *batch, D)`.
        moved: Accepted moves per particle, as a share of those after which particles
            count as independent, at most one, `(*batch,)`.
    """

    theta: Tensor
    moved: Tensor


class Particles(NamedTuple):
    """Weighted draws, with what was estimated on the way to them.

    Attributes:
        theta: Shape `(num, batch, D)`.
        log_weights: Log weights of the last step, not normalised, `(num, batch)`.
        log_z: Estimate of log Z in nats, `(batch,)`.
        log_z_se: Its standard error if moves make the particles independent, `(batch,)`.
        pareto_k: Largest shape k̂ of the weights' tail over all steps, `(batch,)`.
        moved: Least share of the moves that are wanted over all steps, see `Moved`,
            `(batch,)`; one if there was no move.
    """

    theta: Tensor
    log_weights: Tensor
    log_z: Tensor
    log_z_se: Tensor
    pareto_k: Tensor
    moved: Tensor


@torch.no_grad()
def anneal(
    densities: DensityPair,
    support: Support,
    theta: Tensor,
    log_weights: Tensor,
    num: int,
    min_ess: float,
    show_progress: bool = False,
) -> Particles:
    r"""Go from :math:`q_0` to :math:`q_1` along :math:`q_0^{1 - t} q_1^t`.

    Args:
        densities: The logs of q_0 and q_1. That of q_0 has to be finite.
        support: Maps parameters to the unconstrained space in which particles move.
        theta: Draws from q_0, shape `(draws, batch, D)`.
        log_weights: Their `log_ratio`, shape `(draws, batch)`.
        num: Number of particles after the first step, if one step is not enough.
        min_ess: Effective sample size that the first step keeps. Later steps keep
            `MIN_ESS` times `num`.
        show_progress: Whether to show how far t has come.

    Returns:
        Particles with the weights of the last step. These are the given draws if one
        step was enough. `log_z` is the log of the ratio of the two normalisers.

    Raises:
        FloatingPointError: If a density is NaN or plus infinity.
    """
    t, log_z, variance = 0.0, log_weights.new_zeros(()), log_weights.new_zeros(())
    pareto_k = torch.full_like(log_weights[0], -torch.inf)
    moved = torch.ones_like(pareto_k)
    with tqdm(desc="Tempering", total=1.0, disable=not show_progress) as progress:
        while True:
            rest = 1 - t
            step = _longest_step(log_weights, rest, min_ess)
            t, log_weights = t + step, step * log_weights
            log_z = log_z + log_mean_exp(log_weights)
            ess = effective_sample_size(log_weights)
            variance = variance + log_z_variance(ess, len(log_weights)).to(log_weights)
            tail_shapes = pareto_smoothed(log_weights.T.cpu().numpy())[1]
            pareto_k = torch.maximum(pareto_k, torch.from_numpy(tail_shapes).to(pareto_k))
            progress.update(step)
            se = variance.clamp(min=0).sqrt()
            particles = Particles(theta, log_weights, log_z, se, pareto_k, moved)
            if step == rest:
                return particles

            def between(theta: Tensor, t: float = t) -> Tensor:
                log_first, log_last = densities(theta)
                return (1 - t) * log_first + t * log_last

            theta, newly_moved = resample_and_move(between, support, particles, num)
            moved = torch.minimum(moved, newly_moved)
            log_weights, min_ess = log_ratio(densities, theta), MIN_ESS * num


def log_ratio(densities: DensityPair, theta: Tensor) -> Tensor:
    """Return the log of q_1 / q_0 in nats, shape `(num, batch)`.

    Raises:
        FloatingPointError: If it is NaN or plus infinity.
    """
    log_first, log_last = densities(theta)
    return checked(log_last - log_first)


@torch.no_grad()
def resample_and_move(
    log_density: Callable[[Tensor], Tensor],
    support: Support,
    particles: Particles,
    num: int,
) -> Moved:
    """Return `num` draws without weights, moved under a density.

    The arguments are those of `move_particles`.
    """
    chosen = resample(particles.log_weights, num, replacement=True)
    theta = particles.theta.take_along_dim(chosen.unsqueeze(-1), 0)
    return move_particles(log_density, support, theta)


@torch.no_grad()
def move_particles(
    log_density: Callable[[Tensor], Tensor], support: Support, theta: Tensor
) -> Moved:
    """Move draws by Metropolis steps in unconstrained space, so that copies separate.

    The proposal for a draw is to go parallel to the difference of two draws of the other
    half. The difference is scaled by the best factor for a Gaussian. Some proposals take
    the full difference instead.

    Args:
        log_density: Maps parameters `(num, *batch, D)` to an unnormalised log density in
            nats, `(num, *batch)`.
        support: The map to unconstrained space.
        theta: Draws from this density, shape `(num, *batch, D)`. Only draws in the same
            column of the batch give proposals for each other.

    Raises:
        FloatingPointError: If the density is NaN or plus infinity.
    """
    theta = theta.clone()
    u, log_det = support(theta)
    values = checked(log_density(theta)) - log_det
    accepted = torch.zeros_like(values[0])
    enough = max(MIN_ACCEPTED, ACCEPTED_PER_PARAMETER * u.shape[-1])
    for _ in range(ceil(ATTEMPTS_PER_ACCEPTED * enough)):
        first, second = torch.randperm(len(u), device=u.device).tensor_split(2)
        for some, others in ((first, second), (second, first)):
            start, end = (others[torch.randperm(len(others))] for _ in range(2))
            start = start.repeat(2)[: len(some)]
            end = end.repeat(2)[: len(some)]
            draw = torch.rand(*values[some].shape, 1, device=u.device, dtype=u.dtype)
            scale = torch.where(
                draw < SHARE_OF_FULL_STEPS, 1.0, 2.38 / sqrt(2 * u.shape[-1])
            ).to(u)
            step = scale * (u[end] - u[start])
            new_u = u[some] + step
            new, log_det = support.inverse(new_u)
            new_values = checked(log_density(new)) - log_det
            moves = torch.rand_like(new_values).log() < new_values - values[some]
            moves &= (step != 0).any(-1)
            for kept, proposed in ((values, new_values), (u, new_u), (theta, new)):
                moved = moves.reshape(*moves.shape, *[1] * (kept.ndim - moves.ndim))
                kept[some] = torch.where(moved, proposed, kept[some])
            accepted += moves.sum(0) / len(u)
        if bool((accepted >= enough).all()):
            break
    return Moved(theta, (accepted / enough).clamp(max=1))


def checked(log_density: Tensor) -> Tensor:
    """Return log densities after a check that none of them is NaN or plus infinity.

    Raises:
        FloatingPointError: If one is.
    """
    bad = ~(log_density < torch.inf)
    if bool(bad.any()):
        raise FloatingPointError(
            f"The energy is NaN or infinite at {int(bad.sum())} of {bad.numel()} draws."
        )
    return log_density


def _longest_step(log_weights: Tensor, rest: float, min_ess: float) -> float:
    """Return the longest step in t, at most `rest`, that keeps the ESS in each column.

    It keeps `min_ess`, or `MIN_ESS` times the number of positive weights if that is less.
    """
    enough = (MIN_ESS * log_weights.isfinite().sum(0)).clamp(max=min_ess)

    def is_short_enough(step: float) -> bool:
        return bool((effective_sample_size(step * log_weights) >= enough).all())

    if is_short_enough(rest):
        return rest
    low, high = 0.0, rest
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_short_enough(middle) else (low, middle)
    return high
