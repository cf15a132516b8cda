"""A Gaussian flow and a quadratic energy, whose divergences are known exactly."""

from math import log, pi

import torch
from torch import Tensor, nn

from sbi_jeffreys import Conditional


class GaussianFlow(nn.Module):
    """p(θ|x) = N(loc + x, scale²), the same scale for each of D parameters."""

    def __init__(self, loc: float = 0.0, log_scale: float = 0.0) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(log_scale, dtype=torch.float64))

    embedding_net = None

    def given(self, condition: Tensor) -> "GaussianGivenX":
        return GaussianGivenX(self, condition)

    def log_prob(self, input: Tensor, condition: Tensor) -> Tensor:
        z = (input - self.loc - condition) / self.log_scale.exp()
        return (-0.5 * z**2 - self.log_scale - 0.5 * log(2 * pi)).sum(-1)

    def sample_and_log_prob(self, sample_shape, condition: Tensor):
        noise = torch.randn(*sample_shape, *condition.shape, dtype=condition.dtype)
        draws = self.loc + condition + self.log_scale.exp() * noise
        return draws, self.log_prob(draws, condition)


class GaussianGivenX(Conditional):
    def __init__(self, flow: GaussianFlow, condition: Tensor) -> None:
        self.flow, self.condition = flow, condition

    def log_prob(self, input: Tensor) -> Tensor:
        return self.flow.log_prob(input, self.condition)

    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        return self.flow.sample_and_log_prob((num,), self.condition)


class QuadraticEnergy(nn.Module):
    """f(θ, x) = c − a/2 |θ − b − x|², so q(θ|x) = N(b + x, 1/a)."""

    embedding_net: nn.Module = nn.Identity()

    def __init__(self, a: float = 1.0, b: float = 0.0, c: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))
        self.c = nn.Parameter(torch.tensor(c, dtype=torch.float64))

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        squares = (input - self.b - condition) ** 2
        return self.c - 0.5 * self.a * squares.sum(-1)

    def log_z(self, dim: int) -> Tensor:
        return self.c + 0.5 * dim * torch.log(2 * pi / self.a)


def kl_flow_energy(flow: GaussianFlow, energy: QuadraticEnergy, dim: int) -> Tensor:
    """KL(p ‖ q) in nats, the same for every x."""
    variance = (2 * flow.log_scale).exp()
    square = variance + (flow.loc - energy.b) ** 2
    return 0.5 * dim * (energy.a * square - 1 - torch.log(energy.a * variance))
