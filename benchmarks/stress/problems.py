"""Priors and simulators of many kinds, drawn at random by a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch import Tensor
from torch.distributions import (
    Distribution,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    Poisson,
    StudentT,
)


def _independent(marginal: Callable[[Tensor], Distribution], dim: int) -> Distribution:
    return Independent(marginal(torch.ones(dim)), 1)


PRIORS: dict[str, Callable[[int], Distribution]] = {
    "box": lambda dim: BoxUniform(-torch.ones(dim), torch.ones(dim)),
    "wide_box": lambda dim: BoxUniform(-1e4 * torch.ones(dim), 1e4 * torch.ones(dim)),
    "narrow_box": lambda dim: BoxUniform(torch.ones(dim), (1 + 1e-3) * torch.ones(dim)),
    "gaussian": lambda dim: MultivariateNormal(torch.zeros(dim), torch.eye(dim)),
    "gamma": lambda dim: _independent(lambda one: Gamma(2 * one, one), dim),
    "log_normal": lambda dim: _independent(lambda one: LogNormal(0 * one, one), dim),
    "student": lambda dim: _independent(lambda one: StudentT(3 * one), dim),
    "mixed": lambda dim: MultipleIndependent(
        [
            BoxUniform(torch.zeros(1), torch.ones(1)),
            *[Gamma(torch.tensor([2.0]), torch.ones(1)) for _ in range(dim)],
        ],
        validate_args=False,
    ),
}
"""Priors by name; each maps a number of dimensions to a prior."""

SIMULATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda u: u + 0.3 * torch.randn_like(u),
    "without_noise": lambda u: u,
    "uninformative": lambda u: torch.randn_like(u),
    "heavy_tails": lambda u: u + StudentT(1.1).sample(u.shape),
    "counts": lambda u: Poisson(u.clamp(-5, 5).exp()).sample(),
    "signs": lambda u: (u + 0.3 * torch.randn_like(u)).sign(),
    "constant_entries": lambda u: torch.cat([u, torch.ones_like(u), u], 1),
    "tiny": lambda u: 1e-12 * (u + 0.3 * torch.randn_like(u)),
    "huge": lambda u: 1e12 * (u + 0.3 * torch.randn_like(u)),
    "far_from_zero": lambda u: 1e6 + u + 0.3 * torch.randn_like(u),
    "log_normal": lambda u: (3 * u + torch.randn_like(u)).clamp(-40, 40).exp(),
    "walk": lambda u: (u.mean(1, keepdim=True) + torch.randn(len(u), 30)).cumsum(1),
    "one_number": lambda u: u.square().sum(1, keepdim=True) + torch.randn(len(u), 1),
    "outliers": lambda u: torch.where(
        torch.rand_like(u) < 0.01, 1e4 * torch.randn_like(u), u + torch.randn_like(u)
    ),
}
"""Simulators by name; each maps standardised parameters `(N, D)` to x `(N, ...)`."""


@dataclass(frozen=True)
class Problem:
    """What one short training is given.

    Attributes:
        prior: Name of the prior.
        simulator: Name of the simulator.
        dim: Number of parameters given to the prior's function.
        num_simulations: Log-uniform between 20 and 2,000.
        learning_rate: Log-uniform between 1e-4 and 5e-2.
    """

    prior: str
    simulator: str
    dim: int
    num_simulations: int
    learning_rate: float

    def simulate(self, num: int) -> tuple[Distribution, Tensor, Tensor]:
        """Return the prior, parameters `(num, D)` and simulations `(num, ...)`."""
        prior = PRIORS[self.prior](self.dim)
        theta = prior.sample(torch.Size((num,)))
        standardised = (theta - prior.mean) / prior.variance.sqrt()
        return prior, theta, SIMULATORS[self.simulator](standardised)


def draw(seed: int) -> Problem:
    """Return the problem of a seed."""
    rng = random.Random(seed)
    return Problem(
        rng.choice(list(PRIORS)),
        rng.choice(list(SIMULATORS)),
        rng.randint(1, 6),
        round(20 * 100 ** rng.random()),
        1e-4 * 500 ** rng.random(),
    )
