"""Simulators of known difficulty: ten of sbibm (Lueckmann et al. 2021), one of ours.

sbibm's simulators are written again here, vectorised. Its files give the parameters of
slcp_distractors and all reference posteriors (see `references`).
"""

import math
from functools import cache

import numpy as np
import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
)

from benchmarks.tasks.populations import lotka_volterra, sir
from benchmarks.tasks.sbibm_files import sbibm_file
from benchmarks.tasks.task import Task


def _box(bound: float, dim: int) -> BoxUniform:
    return BoxUniform(-bound * torch.ones(dim), bound * torch.ones(dim))


def _gaussian(scale: float, dim: int) -> Distribution:
    return Independent(Normal(torch.zeros(dim), scale * torch.ones(dim)), 1)


def _log_gaussian(medians: list[float], scales: list[float]) -> Distribution:
    return Independent(LogNormal(torch.tensor(medians).log(), torch.tensor(scales)), 1)


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
    """Four points of a Gaussian. Its mean, scales and correlation are the parameters."""
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


@cache
def _distractors() -> tuple[Distribution, Tensor]:
    """Return the distribution of the noise, and the order of all 100 entries of x."""
    gmm = torch.load(sbibm_file("slcp", "gmm.torch"), weights_only=False)
    order = torch.load(sbibm_file("slcp", "permutation_idx.torch"), weights_only=True)
    return gmm, order


def _slcp_distractors(theta: Tensor) -> Tensor:
    """Hide slcp's eight entries among 92 of noise, with heavy tails."""
    noise, order = _distractors()
    with_noise = [_slcp(theta), noise.sample((len(theta),)).to(theta)]
    return torch.cat(with_noise, dim=-1)[:, order]


GLM_DURATION, GLM_FILTER = 100, 9


@cache
def glm_design() -> Tensor:
    """Return a constant, and a noisy stimulus at lags 0 to 8, shape `(100, 10)`."""
    stimulus = np.random.RandomState(42).randn(GLM_DURATION)
    lagged = [np.r_[np.zeros(j), stimulus[: GLM_DURATION - j]] for j in range(GLM_FILTER)]
    return torch.from_numpy(np.stack([np.ones(GLM_DURATION), *lagged], -1)).float()


def _glm_prior() -> Distribution:
    """A Gaussian, independent for the offset, smooth for the filter."""
    difference = torch.eye(GLM_FILTER) - torch.eye(GLM_FILTER).roll(-1, 1).tril(-1)
    ramp = (torch.arange(GLM_FILTER) / GLM_FILTER).sqrt().diag()
    factor = difference @ difference + ramp
    precision = torch.block_diag(torch.tensor([[0.5]]), factor.T @ factor)
    return MultivariateNormal(torch.zeros(GLM_FILTER + 1), precision_matrix=precision)


def _bernoulli_glm_raw(theta: Tensor) -> Tensor:
    """Spikes, zero or one."""
    return torch.bernoulli((theta @ glm_design().T).sigmoid())


def _bernoulli_glm(theta: Tensor) -> Tensor:
    """The sufficient statistics of spikes: their number, and the stimulus before them."""
    return _bernoulli_glm_raw(theta) @ glm_design()


FOLDED_SCALE = 0.3


def _folded_gaussian(theta: Tensor) -> Tensor:
    return theta.abs() + FOLDED_SCALE * torch.randn_like(theta)


def _folded_posterior(x: Tensor, num: int) -> Tensor:
    """|θ| is Gaussian, cut at zero, drawn by its quantile function. Signs are fair."""
    precision = 1 + 1 / FOLDED_SCALE**2
    mean, sd = x.double() / FOLDED_SCALE**2 / precision, precision**-0.5
    above = torch.special.ndtr(mean / sd)  # the mass that is kept
    size = torch.rand(num, x.shape[-1], dtype=torch.float64) * above
    theta = (mean - sd * torch.special.ndtri(size)).clamp(min=0)
    return (theta * (2 * torch.rand_like(theta).round() - 1)).float()


TASKS = {
    task.name: task
    for task in (
        gaussian_linear_uniform(10),
        Task("gaussian_linear", _gaussian(math.sqrt(0.1), 10), _gaussian_linear),
        Task("gaussian_mixture", _box(10.0, 2), _gaussian_mixture),
        Task("two_moons", _box(1.0, 2), _two_moons),
        Task("slcp", _box(3.0, 5), _slcp),
        Task("slcp_distractors", _box(3.0, 5), _slcp_distractors),
        Task("bernoulli_glm", _glm_prior(), _bernoulli_glm),
        Task("bernoulli_glm_raw", _glm_prior(), _bernoulli_glm_raw),
        Task("sir", _log_gaussian([0.4, 0.125], [0.5, 0.2]), sir),
        Task(
            "lotka_volterra",
            _log_gaussian([math.exp(m) for m in (-0.125, -3.0, -0.125, -3.0)], [0.5] * 4),
            lotka_volterra,
        ),
        Task("folded_gaussian", _gaussian(1.0, 4), _folded_gaussian, _folded_posterior),
    )
}
