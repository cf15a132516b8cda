"""Samples of the energy that go in steps from the flow to it."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.sampling.halves import anneal_in_halves
from sbi_jeffreys.sampling.importance_weights import effective_sample_size
from sbi_jeffreys.sampling.rejection import is_inside
from sbi_jeffreys.sampling.smc import resample_and_move

FEWEST_PARTICLES = 500
"""Particles of both halves together, however few samples are wanted."""

MIN_EFFECTIVE = 100.0
"""Effective sample size that the first step from flow to energy keeps."""


class Corrected(NamedTuple):
    """Samples of the energy.

    Attributes:
        theta: Shape `(num, batch, D)`.
        is_reliable: Whether samples are those of the energy as far as can be seen,
            booleans on the CPU, `(batch,)`.
    """

    theta: Tensor
    is_reliable: Tensor


@torch.no_grad()
def annealed(
    pair: ModelPair,
    prior: Distribution,
    x: Tensor,
    theta: Tensor,
    log_weights: Tensor,
    num: int,
    block_size: int,
) -> Corrected:
    """Return samples that go by sequential Monte Carlo from the flow to the energy.

    They are reliable where both halves of the population agree and its particles moved.
    Observations go in groups that fill a block, sorted by their effective sample size: a
    group takes as many steps as the hardest of its observations needs.

    Args:
        pair: Flow and energy.
        prior: All samples are inside its support.
        x: Observations, shape `(batch, *condition_shape)`.
        theta: Draws of the flow, shape `(draws, batch, D)`.
        log_weights: Their log weights in nats, shape `(draws, batch)`.
        num: Number of samples.
        block_size: Most parameters evaluated at a time.

    Raises:
        FloatingPointError: If the energy is NaN or plus infinity.
    """
    num_particles = max(num, FEWEST_PARTICLES)
    order = effective_sample_size(log_weights).argsort().cpu()
    result = Corrected(
        theta.new_empty(num, *theta.shape[1:]), torch.ones(len(x), dtype=torch.bool)
    )
    for group in order.split(max(1, block_size // (2 * num_particles))):
        some = _annealed_group(
            pair,
            prior,
            x[group],
            theta[:, group],
            log_weights[:, group],
            num_particles,
            block_size,
        )
        result.theta[:, group] = some.theta[:num]
        result.is_reliable[group] = some.is_reliable
    return result


def _annealed_group(
    pair: ModelPair,
    prior: Distribution,
    x: Tensor,
    theta: Tensor,
    log_weights: Tensor,
    num_particles: int,
    block_size: int,
) -> Corrected:
    """Return all particles, given observations that take their steps together."""
    both = torch.cat([x, x])
    flow, energy_of_halves = pair.given(both)
    _, energy = pair.given(x)
    rows = max(1, block_size // len(both))

    def inside(theta: Tensor, f: Tensor) -> Tensor:
        return torch.where(is_inside(prior, theta), f, -torch.inf)

    def flow_and_energy(theta: Tensor) -> tuple[Tensor, Tensor]:
        log_flow = torch.cat([flow.log_prob(some) for some in theta.split(rows)])
        f = torch.cat([energy_of_halves(some) for some in theta.split(rows)])
        return log_flow, inside(theta, f)

    def log_energy(theta: Tensor) -> Tensor:
        return inside(theta, torch.cat([energy(some) for some in theta.split(rows)]))

    support = pair.energy.support
    halves = anneal_in_halves(
        flow_and_energy, support, theta, log_weights, num_particles, MIN_EFFECTIVE
    )
    samples, moved = resample_and_move(
        log_energy, support, halves.particles, num_particles
    )
    return Corrected(samples, halves.are_reliable(moved).cpu())
