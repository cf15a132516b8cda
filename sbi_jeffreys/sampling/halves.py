r"""Sequential Monte Carlo in two halves, and whether they agree.

A population is wrong where few draws are the ancestors of many particles: a mode that
one or two draws have found, or that none has. Two populations that know nothing of each
other then estimate different normalisers, $Z_1$ and $Z_2$. So each half of the draws goes
from $q_0$ to $q_1$ by itself. Joined, half j has the weight $Z_j / (Z_1 + Z_2)$, which is
as good as one population of both.

What no draw has found, no half can tell.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sbi_jeffreys.preprocessing.support import Support
from sbi_jeffreys.sampling.smc import DensityPair, Particles, anneal

MAX_GAP = 0.7
"""Largest |log Z_1 − log Z_2| of reliable samples, in nats: a factor of two."""

MIN_MOVED = 0.5
"""Fewest accepted moves of reliable samples, as a share of those wanted."""


class Halves(NamedTuple):
    """Both halves, joined.

    Attributes:
        particles: Weighted draws, see `Particles`, shape `(num, batch, D)`.
        gap: |log Z_1 − log Z_2| in nats, `(batch,)`.
    """

    particles: Particles
    gap: Tensor

    def are_reliable(self, moved: Tensor) -> Tensor:
        """Return whether halves agree and particles moved, booleans `(batch,)`.

        Args:
            moved: See `Moved`, of the step after the last, `(batch,)`.
        """
        moved = torch.minimum(moved, self.particles.moved)
        return (self.gap <= MAX_GAP) & (moved >= MIN_MOVED)


def anneal_in_halves(
    densities: DensityPair,
    support: Support,
    theta: Tensor,
    log_weights: Tensor,
    num: int,
    min_ess: float,
) -> Halves:
    """Go from q_0 to q_1 in two halves.

    Args:
        densities: As in `anneal`, but of twice the batch: the first half of the columns
            belongs to the first half of the draws.
        support: As in `anneal`.
        theta: Draws from q_0, shape `(draws, batch, D)`. The last of an odd number is
            left out.
        log_weights: Their `log_ratio`, shape `(draws, batch)`.
        num: Number of particles of both halves together after the first step.
        min_ess: Effective sample size that the first step keeps, in both together.

    Raises:
        FloatingPointError: If a density is NaN or plus infinity.
    """
    theta, log_weights = _split(theta), _split(log_weights)
    found = ~log_weights.isneginf().all(0)
    # A half in which all weights are zero has none in the end either. It borrows draws.
    shift = len(found) // 2
    log_weights = torch.where(found, log_weights, log_weights.roll(shift, 1))
    theta = torch.where(found.unsqueeze(-1), theta, theta.roll(shift, 1))
    halves = anneal(densities, support, theta, log_weights, num // 2, min_ess / 2)
    log_z = torch.where(found, halves.log_z, -torch.inf)
    shares = halves.log_weights.log_softmax(0) + log_z
    first, second = log_z.tensor_split(2)
    log_z_se = halves.log_z_se.unflatten(0, (2, -1)).square().sum(0).sqrt() / 2
    particles = Particles(
        _join(halves.theta),
        _join(shares),
        torch.logaddexp(first, second) - torch.tensor(2.0).log(),
        log_z_se,
        halves.pareto_k.unflatten(0, (2, -1)).amax(0),
        halves.moved.unflatten(0, (2, -1)).amin(0),
    )
    return Halves(particles, (first - second).abs())


def _split(values: Tensor) -> Tensor:
    """Map `(draws, batch, ...)` to `(draws / 2, 2 batch, ...)`."""
    half = len(values) // 2
    return torch.cat([values[:half], values[half : 2 * half]], 1)


def _join(values: Tensor) -> Tensor:
    """Map `(draws / 2, 2 batch, ...)` to `(draws, batch, ...)`."""
    return torch.cat(values.tensor_split(2, 1))
