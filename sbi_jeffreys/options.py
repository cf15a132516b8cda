"""The options of the constrained Jeffreys method, and the arguments of a training."""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np
import torch

from sbi_jeffreys._sbi import TrainConfig
from sbi_jeffreys.objective.multipliers import (
    ConstrainedMultipliers,
    FixedMultipliers,
    Multipliers,
    ResilientMultipliers,
)
from sbi_jeffreys.objective.normalizers import NORMALIZERS, Normalizer
from sbi_jeffreys.training.step import TrainingOptions

Weighting = Literal["resilient", "constrained", "fixed"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


@dataclass(frozen=True)
class JeffreysOptions:
    r"""The options that `JNPE` and `JeffreysDensityEstimator` take by name.

    Attributes:
        num_energies: Number of networks whose mean is the energy. Each fits the data by
            itself. Their mean overfits less than one of them; one trains faster. It has
            no effect where `energy_net` is a module.
        num_particles: Draws from the flow for each x of a batch.
        normalizer: Estimate of the energy's log Z: "generalized", "importance" or
            "ranking". See `objective.normalizers`.
        weighting: "resilient" and "constrained" adapt the weights of the divergences by
            dual ascent, see `objective.multipliers`; "fixed" keeps `weights`.
        weights: Of KL(data ‖ flow), KL(flow ‖ energy) and KL(data ‖ energy), for "fixed",
            by default (1, 1, 1), or in the objective of "constrained", by default (0.1,
            1, 0.1).
        slack: :math:`\kappa` in nats, for "resilient": one number, or one for each
            divergence. A divergence of zero has the weight `slack * relaxation_cost`. A
            divergence of `-slack`, which is memorisation, has the smallest weight. With
            a small slack for KL(data ‖ flow), such as (0.2, 1, 1), the flow follows the
            energy sooner. That was better on gaussian_linear and worse on two_moons.
        relaxation_cost: :math:`\alpha`, weight per nat of divergence.
        multiplier_step_size: :math:`\eta`, the step of the dual ascent.
        multiplier_bounds: Smallest and largest multiplier.
        energy_learning_rate: Learning rate of the energy; twice the flow's by default.

    Raises:
        ValueError: If an option is out of range. The message names it.
    """

    num_energies: int = 4
    num_particles: int = 2
    normalizer: Normalizer = "generalized"
    weighting: Weighting = "resilient"
    weights: tuple[float, float, float] | None = None
    slack: float | tuple[float, float, float] = 1.0
    relaxation_cost: float = 1.0
    multiplier_step_size: float = 0.02
    multiplier_bounds: tuple[float, float] = (0.05, 3.0)
    energy_learning_rate: float | None = None

    def __post_init__(self) -> None:
        bounds, weights, rate = (
            self.multiplier_bounds,
            self.weights,
            self.energy_learning_rate,
        )
        for name, is_valid, expected in (
            ("num_energies", _is_count(self.num_energies), "a whole number, at least 1"),
            (
                "num_particles",
                _is_count(self.num_particles),
                "a whole number, at least 1",
            ),
            ("normalizer", self.normalizer in NORMALIZERS, f"one of {NORMALIZERS}"),
            (
                "weighting",
                self.weighting in WEIGHTINGS,
                f"one of {WEIGHTINGS}",
            ),
            (
                "weights",
                weights is None
                or (np.shape(weights) == (3,) and min(weights) >= 0 and max(weights) > 0),
                "three non-negative numbers, not all of them zero",
            ),
            (
                "slack",
                np.shape(self.slack) in ((), (3,)) and np.min(self.slack) >= 0,
                "a non-negative number or three",
            ),
            ("relaxation_cost", self.relaxation_cost > 0, "positive"),
            ("multiplier_step_size", self.multiplier_step_size > 0, "positive"),
            (
                "multiplier_bounds",
                np.shape(bounds) == (2,) and 0 <= bounds[0] < bounds[1],
                "an interval of non-negative numbers",
            ),
            ("energy_learning_rate", rate is None or rate > 0, "positive"),
        ):
            if not is_valid:
                raise ValueError(
                    f"Expected `{name}` to be {expected}, got {getattr(self, name)}."
                )

    @property
    def step(self) -> TrainingOptions:
        """What the training step needs of the options."""
        return TrainingOptions(
            num_particles=self.num_particles, normalizer=self.normalizer
        )

    def multipliers(self, device: torch.device | str) -> Multipliers:
        """Return new weights of the three divergences, on a device."""
        weights = self.weights
        if self.weighting == "fixed":
            return FixedMultipliers(
                (1.0, 1.0, 1.0) if weights is None else weights, device
            )
        if self.weighting == "constrained":
            least = (0.1, 1.0, 0.1) if weights is None else weights
            return ConstrainedMultipliers(least, self.multiplier_step_size, device)
        return ResilientMultipliers(
            slack=self.slack,
            relaxation_cost=self.relaxation_cost,
            step_size=self.multiplier_step_size,
            bounds=self.multiplier_bounds,
            device=device,
        )


def train_config(**arguments: Any) -> TrainConfig:
    """Return those of the arguments of `train` that sbi's trainers share, checked.

    `stop_after_epochs=None` becomes 1, as it stands for a rule without a number.

    Args:
        arguments: All arguments of `train`, by name.

    Raises:
        ValueError: If one is out of range. The message names it.
        TypeError: If one is of another type.
    """
    chosen = {field.name: arguments[field.name] for field in fields(TrainConfig)}
    if chosen["stop_after_epochs"] is None:
        chosen["stop_after_epochs"] = 1
    config = TrainConfig(**chosen)
    for name in ("learning_rate", "clip_max_norm"):
        if chosen[name] is not None and not isfinite(chosen[name]):
            raise ValueError(f"Expected a finite `{name}`, got {chosen[name]}.")
    return config


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and int(value) >= 1
