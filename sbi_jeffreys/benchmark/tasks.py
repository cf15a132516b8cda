"""Simulators with known difficulty, as defined in sbibm (Lueckmann et al. 2021)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal


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


def _gaussian(scale: float, dim: int) -> Distribution:
    return Independent(Normal(torch.zeros(dim), scale * torch.ones(dim)), 1)


def _gaussian_linear(theta: Tensor) -> Tensor:
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


def _gaussian_mixture(theta: Tensor) -> Tensor:
    """A broad Gaussian around each point, or with probability 1/2 a narrow one."""
    scale = torch.where(torch.rand(len(theta), 1) < 0.5, 1.0, 0.1)
    return theta + scale * torch.randn_like(theta)


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


def gaussian_linear_uniform(dim: int) -> Task:
    """Return the task of this name, with `dim` parameters instead of 10."""
    return Task("gaussian_linear_uniform", _box(1.0, dim), _gaussian_linear)


TASKS = {
    task.name: task
    for task in (
        gaussian_linear_uniform(10),
        Task("gaussian_linear", _gaussian(math.sqrt(0.1), 10), _gaussian_linear),
        Task("gaussian_mixture", _box(10.0, 2), _gaussian_mixture),
        Task("two_moons", _box(1.0, 2), _two_moons),
        Task("slcp", _box(3.0, 5), _slcp),
    )
}
