r"""One primal-dual step: descent on the Lagrangian, ascent on its multipliers.

    φ, ψ ← Adam step along −∇ Σ_i λ_i D_i(φ, ψ)
    λ_i  ← [λ_i + η (D_i − ε_i)] within its bounds

All that a step reads or writes stays on the device, at addresses that do not change. A
step never waits for the device, so what an epoch reports is summed there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from sbi_jeffreys.data.processes import mean_over_processes, num_processes
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.log_ratio import LogRatioNet
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.models.transforms import Layers
from sbi_jeffreys.objective.divergences import jeffreys_divergences
from sbi_jeffreys.objective.multipliers import EntropyReference, Multipliers
from sbi_jeffreys.objective.normalizers import Normalizer
from sbi_jeffreys.training.averaging import FlatParameters, MovingAverage


@dataclass(frozen=True)
class TrainingOptions:
    """Options that do not change while a pair of models is trained.

    Attributes:
        num_particles: Number K of draws from the flow for each x of a batch.
        normalizer: Estimate of log Z, see `objective.normalizers`.
        averaging: Weight of the past in the moving average of the weights, per step.
        num_validation_particles: Number of draws from the flow for each held-out x.
    """

    num_particles: int = 2
    normalizer: Normalizer = "generalized"
    averaging: float = 0.997
    num_validation_particles: int = 8


class TrainedPair(ModelPair):
    """A pair in training: called with a batch, it returns the mean divergences."""

    def __init__(
        self,
        flow: ConditionalFlow,
        energy: ConditionalEnergy,
        options: TrainingOptions,
    ) -> None:
        """
        Args:
            flow: The flow.
            energy: The energy.
            options: The number of particles and the normaliser are used.
        """
        super().__init__(flow, energy)
        self.options = options

    def forward(self, theta: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """Return the means of D1 + H, D2 and D3 + H in nats, shape `(3,)`.

        Args:
            theta: Parameters, shape `(batch, D)`.
            x: The simulations of these parameters, shape `(batch, ...)`.
            weights: Weights of the pairs, shape `(batch,)`.
        """
        flow, energy = self.given(x, self.energy.members)
        return jeffreys_divergences(
            flow, energy, theta, self.options.num_particles, self.options.normalizer
        ).mean(weights)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the flow's parameters, and those that only the energy has.

        The parameters of a shared embedding belong to the flow's.
        """
        flow = list(self.flow.parameters())
        shared = set(map(id, flow))
        return flow, [p for p in self.energy.parameters() if id(p) not in shared]


class PrimalDualStep:
    """Trains a pair in place, one batch a call.

    Attributes:
        total: Sum of the divergences since `reset_statistics`, in nats, shape `(3,)`.
        count: Number of steps since `reset_statistics`, shape `()`.
        first_bad_step: For each divergence, the number of the first step since
            `reset_statistics` in which it was not finite, shape `(3,)`. Infinity if there
            was none.
    """

    def __init__(
        self,
        pair: TrainedPair,
        multipliers: Multipliers,
        learning_rate: float,
        energy_learning_rate: float | None,
    ) -> None:
        """
        Args:
            pair: The models.
            multipliers: Weights of the three divergences.
            learning_rate: Learning rate of Adam for the flow.
            energy_learning_rate: Learning rate of Adam for the energy. With None the
                energy is not trained.
        """
        self.pair = pair
        self.model: nn.Module = pair
        self.multipliers = multipliers
        self.trains_energy = energy_learning_rate is not None
        flow_parameters, energy_parameters = pair.parameter_groups()
        parameters = [flow_parameters]
        self.rates = [learning_rate]
        if energy_learning_rate is not None:
            parameters.append(energy_parameters)
            self.rates.append(energy_learning_rate)
        groups = [_gathered(pair, group) for group in parameters]
        self.vectors = [vector for vectors, _ in groups for vector in vectors]
        self.others = [parameter for _, others in groups for parameter in others]
        self.groups = [[*(v.vector for v in vectors), *rest] for vectors, rest in groups]
        settings: list[dict[str, Any]] = [
            {"params": group, "lr": rate}
            for group, rate in zip(self.groups, self.rates, strict=True)
        ]
        device = multipliers.values.device
        is_captured = device.type == "cuda" and num_processes() == 1
        if is_captured:  # a captured step reads its learning rates from the device
            for group in settings:
                group["lr"] = torch.tensor(group["lr"], device=device)
        self.optimizer = Adam(
            settings,
            fused=all(p.is_floating_point() for p in pair.parameters()),
            capturable=is_captured,
        )
        self.average = MovingAverage(
            pair, pair.options.averaging, self.vectors, self.others
        )
        self.reference = EntropyReference(device)
        self.clip_max_norm: float | None = None
        self.total = torch.zeros(3, device=device)
        self.first_bad_step = torch.zeros(3, device=device)
        self.count = torch.zeros((), device=device)
        self.reset_statistics()

    def train(self) -> None:
        """Put the models into training mode, except an energy that is not trained."""
        self.pair.flow.train()
        self.pair.energy.train(self.trains_energy)

    def gather(self) -> None:
        """Move weights and averages into vectors, unless they are there already."""
        for vector in (*self.vectors, *self.average.vectors):
            vector.gather()

    def release(self) -> None:
        """Give each weight and average memory of its own again, and no gradient."""
        for vector in (*self.vectors, *self.average.vectors):
            vector.release()
        self.pair.zero_grad(set_to_none=True)

    def scale_rates(self, factor: float) -> None:
        """Set the learning rates to `factor` times those of the constructor."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(factor * rate)
            else:
                group["lr"] = factor * rate

    def reset_statistics(self) -> None:
        """Set the sums and counts to zero."""
        self.total.zero_()
        self.first_bad_step.fill_(torch.inf)
        self.count.zero_()

    def __call__(self, theta: Tensor, x: Tensor, weights: Tensor) -> None:
        """Take a step of descent, update the averages, and take a step of ascent.

        Args:
            theta: Parameters, shape `(batch, D)`.
            x: The simulations of these parameters, shape `(batch, ...)`.
            weights: Weights of the pairs, shape `(batch,)`.
        """
        self.gather()
        divergences = self.model(theta, x, weights)
        self.zero_grad()
        (self.multipliers.values * divergences).sum().backward()
        self.descend()

        divergences = mean_over_processes(divergences.detach())
        self.multipliers.update(self.reference.subtract(divergences))
        self.count += 1
        self.total += divergences
        bad = torch.where(divergences.isfinite(), torch.inf, self.count)
        torch.minimum(self.first_bad_step, bad, out=self.first_bad_step)

    def zero_grad(self) -> None:
        """Set the gradients of the weights, which are gathered, to zero."""
        for vector in self.vectors:
            vector.zero_grad()
        for parameter in self.others:
            parameter.grad = None

    def descend(self) -> None:
        """Clip the gradients, and update the weights and their averages."""
        if self.clip_max_norm is not None:
            for group in self.groups:
                clip_grad_norm_(group, self.clip_max_norm)
        self.optimizer.step()
        self.average.update()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, not copied."""
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


def _gathered(
    pair: TrainedPair, parameters: list[nn.Parameter]
) -> tuple[list[FlatParameters], list[nn.Parameter]]:
    """Return the parameters of the package's own networks as a vector, and the others.

    A network of the user's may move its parameters, or freeze some of them.
    """
    own = [m for m in pair.modules() if type(m) in (Layers, LogRatioNet)]
    ids = {id(parameter) for module in own for parameter in module.parameters()}
    gathered = [p for p in parameters if id(p) in ids]
    others = [p for p in parameters if id(p) not in ids]
    return [FlatParameters(gathered)] if gathered else [], others
