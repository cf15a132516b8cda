"""One primal-dual step: descent on the Lagrangian, ascent on its multipliers.

Everything a step reads or writes stays on the device, at addresses that do not change,
and nothing in it waits for the device: what an epoch reports is summed up there.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from sbi_jeffreys.data.processes import mean_over_processes, num_processes
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.objective.divergences import Normalizer, jeffreys_divergences
from sbi_jeffreys.objective.multipliers import (
    EntropyReference,
    FixedMultipliers,
    ResilientMultipliers,
)


@dataclass(frozen=True)
class TrainingOptions:
    """What does not change while a pair of models is trained.

    Attributes:
        num_particles: Draws K from the flow for each x of a batch.
        normalizer: Estimate of log Z, see `objective.log_normalizer`.
        averaging: Weight of the past in the moving average of the weights, per step.
        decay: Factor by which learning rates fall when validation stalls.
        num_validation_particles: Draws for each held-out x.
    """

    num_particles: int = 4
    normalizer: Normalizer = "generalized"
    averaging: float = 0.997
    decay: float = 0.5
    num_validation_particles: int = 8


class TrainedPair(ModelPair):
    """A pair that is being trained, whose value is its divergences on a batch."""

    def __init__(
        self,
        flow: ConditionalFlow,
        energy: ConditionalEnergy,
        options: TrainingOptions,
    ) -> None:
        super().__init__(flow, energy)
        self.options = options

    def forward(self, theta: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """Return the mean divergences of a batch, shape `(3,)`, as `objective` has them.

        Args:
            theta: Parameters, shape `(batch, D)`.
            x: The simulations that belong to them, shape `(batch, ...)`.
            weights: Of the pairs, shape `(batch,)`.
        """
        flow, energy = self.given(x, self.energy.members)
        return jeffreys_divergences(
            flow, energy, theta, self.options.num_particles, self.options.normalizer
        ).mean(weights)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the flow's parameters, and those that are the energy's alone."""
        flow = list(self.flow.parameters())
        shared = set(map(id, flow))
        return flow, [p for p in self.energy.parameters() if id(p) not in shared]


class MovingAverage:
    r"""Exponential moving average of a module's parameters, $\bar w$.

    Early on it forgets the start faster: after n updates, the share of the newest
    weights is $\max(1 - \rho, 9 / (9 + n))$. Torch's `AveragedModel` waits for the device
    at each update, to see whether it is the first.
    """

    def __init__(self, module: nn.Module, past: float) -> None:
        r"""
        Args:
            module: Its parameters are averaged.
            past: $\rho$, weight of the past.
        """
        self.source, self.past = module, past
        self.module = deepcopy(module).requires_grad_(False).eval()
        first = next(module.parameters())
        self.num_updates = torch.zeros((), device=first.device)
        self._averages: list[Tensor] = list(self.module.parameters())
        self._weights: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present parameters."""
        share = (9 / (9 + self.num_updates)).clamp(min=1 - self.past)
        self.num_updates += 1
        steps = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(self._averages, steps)

    def copy_buffers(self) -> None:
        """Take over the module's buffers, for example of a batch normalisation."""
        buffers = zip(self.module.buffers(), self.source.buffers(), strict=True)
        for average, buffer in buffers:
            average.copy_(buffer)


class PrimalDualStep:
    """Trains a pair in place, one batch a call.

    Attributes:
        total: Sum of the divergences since `reset_statistics`, in nats, shape `(3,)`.
        onset: Number of the step at which each of them was first not finite, shape
            `(3,)`; infinite if it never was.
    """

    def __init__(
        self,
        pair: TrainedPair,
        multipliers: ResilientMultipliers | FixedMultipliers,
        learning_rate: float,
        energy_learning_rate: float,
    ) -> None:
        """
        Args:
            pair: The models.
            multipliers: Weights of the three divergences.
            learning_rate: Of Adam, for the flow.
            energy_learning_rate: Likewise for the energy.
        """
        self.pair = pair
        self.model: nn.Module = pair
        self.multipliers = multipliers
        self.groups = pair.parameter_groups()
        device = multipliers.values.device
        self.optimizer = Adam(
            [
                {"params": self.groups[0], "lr": learning_rate},
                {"params": self.groups[1], "lr": energy_learning_rate},
            ],
            fused=all(p.is_floating_point() for p in pair.parameters()),
            capturable=device.type == "cuda" and num_processes() == 1,
        )
        self.average = MovingAverage(pair, pair.options.averaging)
        self.reference = EntropyReference(device)
        self.clip_max_norm: float | None = None
        self.total = torch.zeros(3, device=device)
        self.onset = torch.zeros(3, device=device)
        self.count = torch.zeros((), device=device)
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Start to count anew."""
        self.total.zero_()
        self.onset.fill_(torch.inf)
        self.count.zero_()

    def __call__(self, theta: Tensor, x: Tensor, weights: Tensor) -> None:
        """Descend, average, ascend.

        Args:
            theta: Parameters, shape `(batch, D)`.
            x: The simulations that belong to them, shape `(batch, ...)`.
            weights: Of the pairs, shape `(batch,)`.
        """
        divergences = self.model(theta, x, weights)
        self.optimizer.zero_grad()
        (self.multipliers.values * divergences).sum().backward()
        if self.clip_max_norm is not None:
            for parameters in self.groups:
                clip_grad_norm_(parameters, self.clip_max_norm)
        self.optimizer.step()
        self.average.update()

        divergences = mean_over_processes(divergences.detach())
        self.multipliers.update(self.reference.subtract(divergences))
        self.count += 1
        self.total += divergences
        bad = torch.where(divergences.isfinite(), torch.inf, self.count)
        torch.minimum(self.onset, bad, out=self.onset)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, without copying it."""
        return {
            "pair": self.pair.state_dict(),
            "average": self.average.module.state_dict(),
            "num_updates": self.average.num_updates,
            "optimizer": self.optimizer.state_dict(),
            "multipliers": self.multipliers.values,
            "reference": self.reference.value,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.pair.load_state_dict(state["pair"])
        self.average.module.load_state_dict(state["average"])
        self.average.num_updates.copy_(state["num_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.multipliers.values.copy_(state["multipliers"])
        self.reference.value.copy_(state["reference"])
