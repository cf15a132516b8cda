"""What a task is: a prior and a simulator."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor
from torch.distributions import Distribution


@dataclass(frozen=True)
class Task:
    """A prior and a simulator.

    Attributes:
        name: As in sbibm.
        prior: Over `(D,)`.
        simulator: From parameters `(N, D)` to simulations `(N, ...)`.
        exact_posterior: Draws from the posterior given one x, `(1, ...)`: from x and a
            number N to `(N, D)`. None where sbibm has reference samples instead.
    """

    name: str
    prior: Distribution
    simulator: Callable[[Tensor], Tensor]
    exact_posterior: Callable[[Tensor, int], Tensor] | None = None

    def simulate(self, num_simulations: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return parameters and simulations, without touching torch's global state."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            theta = self.prior.sample(torch.Size((num_simulations,)))
            return theta, self.simulator(theta)


def on_device(prior: Distribution, device: str) -> Distribution:
    """Return a copy of the prior on the device."""
    return move_distribution_to_device(deepcopy(prior), device)
