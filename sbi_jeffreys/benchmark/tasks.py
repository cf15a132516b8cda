"""Simulators with known difficulty, as defined in sbibm (Lueckmann et al. 2021)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution


@dataclass(frozen=True)
class Task:
    """A prior and a simulator.

    Attributes:
        name: As in sbibm.
        prior: Over `(D,)`.
        simulator: From parameters `(N, D)` to simulations `(N, ...)`.
    """

    name: str
    prior: Distribution
    simulator: Callable[[Tensor], Tensor]

    def simulate(self, num_simulations: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return parameters and simulations, without touching torch's global state."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            theta = self.prior.sample(torch.Size((num_simulations,)))
            return theta, self.simulator(theta)


def _box(bound: float, dim: int) -> BoxUniform:
    return BoxUniform(-bound * torch.ones(dim), bound * torch.ones(dim))


def _gaussian_linear(theta: Tensor) -> Tensor:
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


def _two_moons(theta: Tensor) -> Tensor:
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)
    total, difference = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
    return crescent + torch.stack([-total.abs(), difference], -1) / math.sqrt(2)


def _slcp(theta: Tensor) -> Tensor:
    """Four points from a Gaussian whose mean, scales and correlation are sought."""
    mean = theta[:, None, :2]
    scale_1, scale_2 = (theta[:, None, 2:4].square()).unbind(-1)
    correlation = theta[:, None, 4].tanh()
    noise_1, noise_2 = torch.randn(2, len(theta), 4)
    noise_2 = correlation * noise_1 + (1 - correlation.square()).sqrt() * noise_2
    points = mean + torch.stack([scale_1 * noise_1, scale_2 * noise_2], -1)
    return points.flatten(1)


TASKS = {
    task.name: task
    for task in (
        Task("gaussian_linear_uniform", _box(1.0, 10), _gaussian_linear),
        Task("two_moons", _box(1.0, 2), _two_moons),
        Task("slcp", _box(3.0, 5), _slcp),
    )
}
