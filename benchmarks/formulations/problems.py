r"""Problems that flow p and energy q can solve, beside the resilient one.

    D1 = KL(π ‖ p),   D2 = KL(p ‖ q),   D3 = KL(π ‖ q)

- fixed weights: min λ1 D1 + λ2 D2 + λ3 D3.
- inequality: min ω (D1 + D3) + D2 subject to NLL(p) ≤ b and NLL(q) ≤ b, with ω = 0 or
  0.1. The multipliers μ of the two constraints go by plain dual ascent,
  μ ← [μ + η (NLL − b)]₊, without a leak, and with no bound but zero. D1 and D3 have the
  weights ω + μ. The level b is the lowest held-out NLL of the flow so far, or the NLL of
  the training pairs under flows that have not seen them ("out of fold").
- inequality, each pair: the same with a constraint and a multiplier for each pair. Its
  level is that pair's own NLL out of fold, in which the entropy cancels pair by pair.
- covering: KL(q ‖ p), on draws of p with self-normalised weights, is added to D2.
- one-sided: D2 moves p alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.objective.divergences import jeffreys_divergences
from sbi_jeffreys.objective.multipliers import (
    ConstrainedMultipliers,
    EntropyReference,
    FixedMultipliers,
    Multipliers,
    ResilientMultipliers,
)
from sbi_jeffreys.training.step import TrainedPair, TrainingOptions

STEP_SIZE_OF_PAIRS = 0.1
"""η of the multipliers of single pairs, which take one step in each epoch."""

NUM_COVERING_DRAWS = 8
"""Draws of the flow that KL(q ‖ p) is estimated from, for each x."""

LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights of D1 and of D3 in the grid of fixed weightings. D2 has 1."""


class FixedReference(EntropyReference):
    """An estimate of the entropy that does not change."""

    def __init__(self, value: float) -> None:
        """
        Args:
            value: The estimate, in nats.
        """
        super().__init__()
        self.value.fill_(value)

    def update(self, held_out_nll: float) -> None:
        """Do nothing."""


class OneSided(TrainedPair):
    """KL(flow ‖ energy) moves the flow alone."""

    def forward(self, theta: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """See `TrainedPair.forward`."""
        kl_data_flow, _, kl_data_energy = super().forward(theta, x, weights)
        parameters = [p for p in self.energy.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        flow, energy = self.given(x)
        draws, log_p = flow.rsample_and_log_prob(self.options.num_particles)
        kl_flow_energy = ((log_p - energy(draws)).mean(0) * weights).mean()
        for parameter in parameters:
            parameter.requires_grad_(True)
        return torch.stack([kl_data_flow, kl_flow_energy, kl_data_energy])


class Covering(TrainedPair):
    """KL(energy ‖ flow) is added to KL(flow ‖ energy), for the flow."""

    def forward(self, theta: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """See `TrainedPair.forward`."""
        kl_data_flow, kl_flow_energy, kl_data_energy = super().forward(theta, x, weights)
        flow, energy = self.given(x)
        with torch.no_grad():
            draws, log_p = flow.rsample_and_log_prob(NUM_COVERING_DRAWS)
            shares = (energy(draws) - log_p).softmax(0)
        covering = -(shares * flow.log_prob(draws)).sum(0)
        total = kl_flow_energy + (covering * weights).mean()
        return torch.stack([kl_data_flow, total, kl_data_energy])


class EachPair(TrainedPair):
    """Each pair has multipliers of its own.

    The "weights" of a batch are the rows of its pairs. The weights of all pairs are one.
    The divergences that `forward` returns are weighted by the multipliers already.
    """

    def __init__(
        self,
        flow: ConditionalFlow,
        energy: ConditionalEnergy,
        options: TrainingOptions,
        levels: Tensor,
    ) -> None:
        """
        Args:
            flow, energy, options: See `TrainedPair`.
            levels: The NLL of each pair out of fold, in nats, by row, shape `(N,)`.
        """
        super().__init__(flow, energy, options)
        self.levels: Tensor
        self.multipliers: Tensor
        self.register_buffer("levels", levels)
        self.register_buffer("multipliers", torch.ones(2, len(levels)))

    def forward(self, theta: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """See `TrainedPair.forward`."""
        rows = weights.long()
        flow, energy = self.given(x, self.energy.members)
        one, two, three = jeffreys_divergences(
            flow, energy, theta, self.options.num_particles, self.options.normalizer
        )
        of_flow, of_energy = self.multipliers[:, rows]
        with torch.no_grad():
            violations = torch.stack([one, three]) - self.levels[rows]
            raised = self.multipliers[:, rows] + STEP_SIZE_OF_PAIRS * violations
            self.multipliers[:, rows] = raised.clamp(min=0)
        return torch.stack([of_flow * one, two, of_energy * three]).mean(-1)


def _fixed(*weights: float) -> Callable[[], Multipliers]:
    assert len(weights) == 3
    return lambda: FixedMultipliers((weights[0], weights[1], weights[2]))


@dataclass(frozen=True)
class Formulation:
    """One problem.

    Attributes:
        multipliers: Makes the weights of the divergences.
        pair: The models, which return the divergences.
        level: What takes the place of the entropy: the lowest held-out NLL so far, or an
            NLL of training pairs under flows that have not seen them.
        trains_energy: Whether the energy is trained.
    """

    multipliers: Callable[[], Multipliers]
    pair: type[TrainedPair] = TrainedPair
    level: Literal["held out", "out of fold", "out of fold, each pair"] = "held out"
    trains_energy: bool = True


UNWEIGHTED = partial(ConstrainedMultipliers, (0.0, 1.0, 0.0))
LITTLE = Formulation(_fixed(0.1, 1.0, 0.1))
REFERENCE = "1 / 1 / 1"
FORMULATIONS = {
    REFERENCE: Formulation(_fixed(1.0, 1.0, 1.0)),
    "1 / 0 / 0": Formulation(_fixed(1.0, 0.0, 0.0), trains_energy=False),
    "1 / 0 / 1": Formulation(_fixed(1.0, 0.0, 1.0)),
    "0.1 / 1 / 0.1": LITTLE,
    "resilient": Formulation(ResilientMultipliers),
    "inequality": Formulation(UNWEIGHTED),
    "inequality, 0.1": Formulation(ConstrainedMultipliers),
    "inequality, out of fold": Formulation(UNWEIGHTED, level="out of fold"),
    "inequality, each pair": Formulation(
        _fixed(1.0, 1.0, 1.0), EachPair, "out of fold, each pair"
    ),
    "0.1 / 1 / 0.1, covering": replace(LITTLE, pair=Covering),
    "one-sided": Formulation(_fixed(1.0, 1.0, 1.0), OneSided),
}
"""The problems by name. Numbers are fixed weights of D1, D2 and D3."""

GRID = {
    f"{flow:g} / 1 / {energy:g}": Formulation(_fixed(flow, 1.0, energy))
    for flow, energy in product(LEVELS, LEVELS)
}
"""The 25 fixed weightings of Figure 2 of arXiv:2511.11159."""
