"""Simulators from the literature that had no part in the choices of this package.

sbibm's tasks were looked at while defaults were chosen, mostly on other seeds. These
tasks were written after all choices had been made. There are two exceptions, which were
added after they were measured: `training_range` because of ricker, and errors that depend
on the entries before, `BANDED`, because of ornstein_uhlenbeck. They have no reference
posteriors, so methods are compared by the negative log-likelihood of fresh pairs. Its
mean differs between methods by the difference of their KL from the truth.
"""

import math

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Poisson

from benchmarks.tasks.task import Task


def _intervals(*bounds: tuple[float, float]) -> BoxUniform:
    return BoxUniform(*torch.tensor(bounds).T)


G_AND_K_DRAWS = 1000


def _g_and_k(theta: Tensor) -> Tensor:
    """Octiles of draws from the g-and-k distribution, whose quantiles are known."""
    location, scale, skewness, kurtosis = theta.T.unsqueeze(-1)
    z = torch.randn(len(theta), G_AND_K_DRAWS)
    skewed = 1 + 0.8 * (skewness * z / 2).tanh()
    draws = location + scale * skewed * (1 + z.square()) ** kurtosis * z
    return draws.quantile(torch.arange(1, 8) / 8, dim=-1).T


CUSTOMERS = 50


def _queue(theta: Tensor) -> Tensor:
    """Lowest, highest and quartiles of the times between customers who leave a counter.

    Service takes from `shortest` to `shortest + spread`. Customers come at a rate.
    """
    shortest, spread, rate = theta.T.unsqueeze(-1)
    service = shortest + spread * torch.rand(len(theta), CUSTOMERS)
    arrival = (torch.empty_like(service).exponential_() / rate).cumsum(-1)
    left, gaps = torch.zeros(len(theta)), []
    for came, takes in zip(arrival.T, service.T, strict=True):
        leaves = torch.maximum(came, left) + takes
        gaps.append(leaves - left)
        left = leaves
    return torch.stack(gaps, -1).quantile(torch.linspace(0, 1, 5), dim=-1).T


RICKER_STEPS, RICKER_LAGS = 50, 6


def _ricker(theta: Tensor) -> Tensor:
    """Mean, number of zeros and autocovariances of counts of a noisy population."""
    log_growth, noise, yield_ = theta.T
    log_population, counts = (
        torch.zeros(len(theta)),
        [],
    )  # in logs, because it may be tiny
    for step in range(2 * RICKER_STEPS):
        shock = noise * torch.randn(len(theta))
        log_population = log_population + log_growth - log_population.exp() + shock
        if step >= RICKER_STEPS:
            counts.append(Poisson(yield_ * log_population.exp()).sample())
    y = torch.stack(counts, -1)
    mean, zeros = y.mean(-1, keepdim=True), (y == 0).sum(-1, keepdim=True)
    centered = y - mean
    covariances = [
        (centered[:, lag:] * centered[:, : RICKER_STEPS - lag]).mean(-1)
        for lag in range(RICKER_LAGS)
    ]
    return torch.cat([mean, zeros, torch.stack(covariances, -1)], -1)


OU_STEPS, OU_INTERVAL = 25, 0.2


def _ornstein_uhlenbeck(theta: Tensor) -> Tensor:
    """A path that starts at zero and returns to a level, seen at equal intervals."""
    rate, level, noise = theta.T
    kept = (-rate * OU_INTERVAL).exp()
    spread = noise * (-(-2 * rate * OU_INTERVAL).expm1() / (2 * rate)).sqrt()
    place, path = torch.zeros(len(theta)), []
    for _ in range(OU_STEPS):
        place = level + kept * (place - level) + spread * torch.randn(len(theta))
        path.append(place)
    return torch.stack(path, -1)


SENSORS = torch.tensor([[0.0, 0.0], [2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
BACKGROUND, LEAST_SQUARED_DISTANCE, SENSOR_NOISE = 0.1, 1e-4, 0.5


def _two_sources(theta: Tensor) -> Tensor:
    """Log intensity of two equal sources in the plane, measured by five sensors."""
    sources = theta.reshape(-1, 2, 1, 2)
    squared = (sources - SENSORS).square().sum(-1) + LEAST_SQUARED_DISTANCE
    intensity = BACKGROUND + (1 / squared).sum(1)
    return intensity.log() + SENSOR_NOISE * torch.randn_like(intensity)


UNSEEN = {
    task.name: task
    for task in (
        # Allingham, King & Mengersen (2009)
        Task("g_and_k", _intervals(*[(0.0, 10.0)] * 4), _g_and_k),
        # M/G/1; Papamakarios & Murray (arXiv:1605.06376), with theta_2 - theta_1
        Task("queue", _intervals((0.0, 10.0), (0.0, 10.0), (0.0, 1 / 3)), _queue),
        # Wood (2010), with eight of his statistics
        Task("ricker", _intervals((2.0, 5.0), (0.0, 0.8), (4.0, 20.0)), _ricker),
        Task(
            "ornstein_uhlenbeck",
            _intervals((0.0, 3.0), (-2.0, 2.0), (0.1, 1.5)),
            _ornstein_uhlenbeck,
        ),
        # Foster et al. (arXiv:2103.02438), whose prior is Gaussian
        Task("two_sources", _intervals(*[(-math.pi, math.pi)] * 4), _two_sources),
    )
}
