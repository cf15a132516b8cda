"""sbibm's two simulators that solve differential equations, with torchdiffeq."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

TOLERANCE = 1e-7
CHUNK = 1000

SIR_POPULATION = 1e6
SIR_TESTS = 1000
SIR_TIMES = torch.arange(0.0, 160.0, 17.0, dtype=torch.float64)
PREDATION_TIMES = torch.arange(0.0, 20.0, 2.1, dtype=torch.float64)
PREDATION_NOISE = 0.1


def solve(slope: Callable[[Tensor, Tensor], Tensor], start: Tensor, t: Tensor) -> Tensor:
    """Return the states at times t, `(len(t), N, ...)`, by Dormand and Prince's method.

    Args:
        slope: dy/dt as a function of time and of states `(N, ...)`.
        start: States at the first time, in double precision.
        t: Increasing times.
    """
    return odeint(slope, start, t, rtol=TOLERANCE, atol=TOLERANCE)


def infected(theta: Tensor) -> Tensor:
    """Return the infected share of a population on ten days, `(N, 10)`.

    Args:
        theta: Rates of contact and of recovery per day, shape `(N, 2)`.
    """
    contact, recovery = theta.double().unbind(-1)

    def slope(_: Tensor, state: Tensor) -> Tensor:
        log_susceptible, log_infected = state.unbind(-1)
        return torch.stack(
            [-contact * log_infected.exp(), contact * log_susceptible.exp() - recovery],
            -1,
        )

    shares = torch.tensor([SIR_POPULATION - 1, 1.0]).double() / SIR_POPULATION
    start = shares.log().expand(len(theta), 2)
    return solve(slope, start, SIR_TIMES)[..., 1].exp().T


def sir(theta: Tensor) -> Tensor:
    """Return how many of 1,000 tests on each of ten days are positive, `(N, 10)`."""
    shares = torch.cat([infected(rows) for rows in theta.split(CHUNK)])
    return torch.binomial(torch.full_like(shares, SIR_TESTS), shares.clamp(0, 1)).float()


def prey_and_predators(theta: Tensor) -> Tensor:
    """Return the two populations of Lotka and Volterra at ten times, `(N, 20)`.

    Args:
        theta: Growth and loss of the prey, loss and growth of the predators, shape
            `(N, 4)`.
    """
    growth, eaten, starving, feeding = theta.double().unbind(-1)

    def slope(_: Tensor, state: Tensor) -> Tensor:
        prey, predators = state.exp().unbind(-1)
        return torch.stack([growth - eaten * predators, feeding * prey - starving], -1)

    start = torch.tensor([30.0, 1.0]).double().log().expand(len(theta), 2)
    return solve(slope, start, PREDATION_TIMES).exp().permute(1, 2, 0).flatten(1)


def lotka_volterra(theta: Tensor) -> Tensor:
    """Return both populations at ten times with log-normal noise, shape `(N, 20)`."""
    exact = torch.cat([prey_and_predators(rows) for rows in theta.split(CHUNK)])
    logs = exact.clamp(1e-10, 10_000.0).log()
    return (logs + PREDATION_NOISE * torch.randn_like(logs)).exp().float()
