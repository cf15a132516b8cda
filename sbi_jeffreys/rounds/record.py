"""What a run of rounds gave: the posterior, and a record of each round."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor

from sbi_jeffreys.diagnostics.inference_data import to_inference_data
from sbi_jeffreys.rounds.simulator import Status


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: Its number, from 1.
        num_simulations: Simulations so far, valid or not.
        num_invalid: How many of this round's are not valid, by the name of their
            `Status`.
        kl: KL divergence in nats of the new proposal from the one before, at first from
            the prior. A proposal is a density fitted to the posterior and widened.
        relative_ess: Effective sample size of draws of the flow, weighted to the energy
            at the observation, over their number.
        pareto_k: Shape k̂ of the tail of these weights.
        log_z: Log Z of the energy at the observation, in nats.
        mean: Mean of the posterior, D numbers.
        std: Standard deviation of the posterior, D numbers.
        simulation_seconds: Time of its simulations, in seconds.
        training_seconds: Time of the training after it, in seconds.
    """

    number: int
    num_simulations: int
    num_invalid: dict[str, int]
    kl: float
    relative_ess: float
    pareto_k: float
    log_z: float
    mean: Sequence[float]
    std: Sequence[float]
    simulation_seconds: float
    training_seconds: float


@dataclass(frozen=True)
class Rounds:
    """What `run_rounds` returns. Print it to see a table of the rounds.

    Attributes:
        posterior: The corrected posterior, with x_o as its default x.
        trainer: The trainer, which has all valid simulations.
        x_o: The observations, shape `(n, *x)`.
        rounds: A record of each round.
        reason: Why there are no more rounds.
        num_by_status: Simulations of each `Status`, by name.
    """

    posterior: NeuralPosterior
    trainer: Any
    x_o: Tensor
    rounds: list[Round]
    reason: str
    num_by_status: dict[str, int]

    @property
    def table(self) -> pd.DataFrame:
        """A row for each round, with what `Round` has, in nats and seconds."""
        return pd.DataFrame(
            [
                {
                    "number": each.number,
                    "simulations": each.num_simulations,
                    "invalid": sum(each.num_invalid.values()),
                    "kl": each.kl,
                    "relative_ess": each.relative_ess,
                    "pareto_k": each.pareto_k,
                    "log_z": each.log_z,
                    "simulation_seconds": each.simulation_seconds,
                    "training_seconds": each.training_seconds,
                }
                for each in self.rounds
            ]
        )

    def to_inference_data(self, **options: Any) -> Any:
        """Return the posterior's draws in arviz's format, with the record of the rounds.

        The group `constant_data` has an entry for each round: the columns of `table`, and
        `round_mean` and `round_std`, which have one for each parameter, too.

        Args:
            options: Arguments of `sbi_jeffreys.to_inference_data` after `x_o`.
        """
        constants = {f"round_{name}": column for name, column in self.table.items()}
        constants |= {
            "round_mean": np.array([each.mean for each in self.rounds]),
            "round_std": np.array([each.std for each in self.rounds]),
        }
        return to_inference_data(self.posterior, self.x_o, constants=constants, **options)

    def __str__(self) -> str:
        table = self.table.to_string(index=False, float_format="{:.2f}".format)
        lines = [table, self.reason]
        failed = [
            f"{num} {name}"
            for name, num in self.num_by_status.items()
            if num and name != Status.VALID.name
        ]
        if failed:
            lines.append(f"Simulations that are not valid: {', '.join(failed)}.")
        return "\n".join(lines)
