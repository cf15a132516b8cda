"""Tasks of sbibm whose posterior has a density in closed form."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions import Normal

from benchmarks.tasks.sbibm import FOLDED_SCALE, TASKS

NUM_FOR_MASS = 20_000
"""Draws that estimate the normaliser of two_moons."""


class ExactPosterior(ABC):
    """The posterior of a task, given each of B observations."""

    @abstractmethod
    def sample(self, num: int, x: Tensor) -> Tensor:
        """Return parameters, shape `(num, B, D)`, given x of shape `(B, ...)`."""

    @abstractmethod
    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log densities in nats, shape `(num, B)`, of `(num, B, D)`."""


class ConjugateGaussian(ExactPosterior):
    """gaussian_linear: prior and errors have the same variance."""

    def sample(self, num: int, x: Tensor) -> Tensor:
        """See the base class."""
        return self._given(x).sample(torch.Size((num,)))

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """See the base class."""
        return self._given(x).log_prob(theta).sum(-1)

    def _given(self, x: Tensor) -> Normal:
        return Normal(x / 2, math.sqrt(0.1 / 2))


class CutGaussians(ExactPosterior):
    """A uniform prior in a box, and errors from a mixture of Gaussians."""

    def __init__(self, bound: float, scales: tuple[float, ...]) -> None:
        """
        Args:
            bound: The box is [-bound, bound] in each dimension.
            scales: Standard deviations of the errors; each is as likely.
        """
        self.bound, self.scales = bound, torch.tensor(scales).double()

    def sample(self, num: int, x: Tensor) -> Tensor:
        """See the base class."""
        choice = torch.multinomial(self._log_masses(x).softmax(-1), num, True).T
        scale = self.scales[choice].unsqueeze(-1)
        low, high = (
            torch.special.ndtr((edge - x.double()) / scale)
            for edge in (-self.bound, self.bound)
        )
        level = low + (high - low) * torch.rand(num, *x.shape, dtype=torch.float64)
        theta = x + scale * torch.special.ndtri(level)
        return theta.clamp(-self.bound, self.bound).float()

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """See the base class."""
        scales = self.scales.view(-1, 1, 1, 1)
        each = Normal(x.double(), scales).log_prob(theta.double()).sum(-1)
        log_prob = each.logsumexp(0) - self._log_masses(x).logsumexp(-1)
        return log_prob.float()

    def _log_masses(self, x: Tensor) -> Tensor:
        """Return the log masses of the Gaussians within the box, `(B, Gaussians)`."""
        centre, scale = x.double().unsqueeze(-1), self.scales
        ends = [
            torch.special.ndtr((e - centre) / scale) for e in (-self.bound, self.bound)
        ]
        return (ends[1] - ends[0]).log().sum(-2)


class FoldedGaussian(ExactPosterior):
    """folded_gaussian: each size is a Gaussian cut at zero, and each sign is fair."""

    def sample(self, num: int, x: Tensor) -> Tensor:
        """See the base class."""
        exact = TASKS["folded_gaussian"].exact_posterior
        assert exact is not None
        return torch.stack([exact(row, num) for row in x], 1)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """See the base class."""
        precision = 1 + 1 / FOLDED_SCALE**2
        mean, sd = x.double() / FOLDED_SCALE**2 / precision, precision**-0.5
        above = torch.special.log_ndtr(mean / sd)
        log_prob = Normal(mean, sd).log_prob(theta.double().abs()) - above - math.log(2)
        return log_prob.sum(-1).float()


class TwoMoons(ExactPosterior):
    r"""two_moons: x is a point of a crescent c, moved by $s(\theta)$.

    s takes sums and differences, and the sign of the sum is lost. Its Jacobian is one. So
    the density of $\theta$ is that of $c = x - s(\theta)$, over the mass of the c for
    which there is a $\theta$ in the prior's box, where each sign counts.
    """

    def sample(self, num: int, x: Tensor) -> Tensor:
        """See the base class."""
        drawn = []
        for row in x:
            theta, is_inside = self._solutions(row, 40 * num)
            kept = theta[is_inside]
            if len(kept) < num:
                raise RuntimeError(f"{len(kept)} of {40 * num} draws are in the box.")
            drawn.append(kept[:num])
        return torch.stack(drawn, 1)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """See the base class."""
        total, difference = theta[..., 0] + theta[..., 1], theta[..., 1] - theta[..., 0]
        shift = torch.stack([-total.abs(), difference], -1) / math.sqrt(2)
        first, second = (x - shift - torch.tensor([0.25, 0.0])).unbind(-1)
        radius = (first.square() + second.square()).sqrt()
        log_prob = Normal(0.1, 0.01).log_prob(radius) - (math.pi * radius).log()
        masses = [self._solutions(row, NUM_FOR_MASS)[1].float().mean() for row in x]
        log_prob -= (2 * torch.stack(masses)).log()
        return torch.where(first < 0, -torch.inf, log_prob)

    def _solutions(self, x: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Return parameters for points of the crescent, and whether each is possible."""
        crescent = TASKS["two_moons"].simulator(torch.zeros(num, 2))
        shift = math.sqrt(2) * (x - crescent)
        sign = 2 * torch.rand(num).round() - 1
        total, difference = -sign * shift[:, 0], shift[:, 1]
        theta = torch.stack([total - difference, total + difference], -1) / 2
        return theta, (shift[:, 0] <= 0) & (theta.abs() <= 1).all(-1)


EXACT: dict[str, ExactPosterior] = {
    "gaussian_linear": ConjugateGaussian(),
    "gaussian_linear_uniform": CutGaussians(1.0, (math.sqrt(0.1),)),
    "gaussian_mixture": CutGaussians(10.0, (1.0, 0.1)),
    "two_moons": TwoMoons(),
    "folded_gaussian": FoldedGaussian(),
}
