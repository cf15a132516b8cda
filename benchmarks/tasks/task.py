"""What a task is: a prior and a simulator."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor, nn
from torch.distributions import Distribution


@dataclass(frozen=True)
class Task:
    """A prior and a simulator.

    Attributes:
        name: Name of the task, as in sbibm.
        prior: Prior over `(D,)`.
        simulator: Function from parameters `(N, D)` to simulations `(N, ...)`.
        exact_posterior: Function from one x `(1, ...)` and a number N to N draws of the
            posterior given x, `(N, D)`. None where sbibm has reference samples instead.
        embedding: Function that returns a new network to embed x with; None where methods
            are given none.
    """

    name: str
    prior: Distribution
    simulator: Callable[[Tensor], Tensor]
    exact_posterior: Callable[[Tensor, int], Tensor] | None = None
    embedding: Callable[[], nn.Module] | None = None

    def simulate(self, num_simulations: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return parameters and simulations, without changing torch's random state."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            theta = self.prior.sample(torch.Size((num_simulations,)))
            return theta, self.simulator(theta)


def on_device(prior: Distribution, device: str) -> Distribution:
    """Return a copy of the prior on the device."""
    return move_distribution_to_device(deepcopy(prior), device)
