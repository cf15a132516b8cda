"""Gaussian flows and energies with divergences and posteriors in closed form."""

from math import log, pi

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from sbi_jeffreys import Conditional, ConditionalEnergy, ConditionalFlow
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.preprocessing.scaling import location_and_scale
from sbi_jeffreys.preprocessing.support import Support, support_of


def gaussian_weights(
    num: int,
    batch: int,
    variance: float,
    dim: int = 1,
    log_z: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draws of N(0, variance) and their log weights for e^log_z N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(num, batch, dim, generator=generator, dtype=torch.float64)
    theta *= variance**0.5
    squares = theta.square().sum(-1)
    log_w = log_z + 0.5 * squares * (1 / variance - 1) + dim / 2 * log(variance)
    return theta, log_w


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

    def members(self, input: Tensor, condition: Tensor) -> Tensor:
        return self(input, condition).unsqueeze(0)

    def log_z(self, dim: int) -> Tensor:
        return self.c + 0.5 * dim * torch.log(2 * pi / self.a)


def kl_flow_energy(flow: GaussianFlow, energy: QuadraticEnergy, dim: int) -> Tensor:
    """KL(p ‖ q) in nats, the same for every x."""
    variance = (2 * flow.log_scale).exp()
    square = variance + (flow.loc - energy.b) ** 2
    return 0.5 * dim * (energy.a * square - 1 - torch.log(energy.a * variance))


class ConjugateGaussian:
    """θ ~ N(0, 1) and x_i ~ N(θ, variance), in each of D dimensions by itself."""

    def __init__(self, dim: int = 2, variance: float = 0.5) -> None:
        self.dim, self.variance = dim, variance
        self.prior = MultivariateNormal(torch.zeros(dim), torch.eye(dim))

    def simulate(self, num: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        theta = torch.randn(num, self.dim, generator=generator)
        noise = torch.randn(num, self.dim, generator=generator)
        return theta, theta + self.variance**0.5 * noise

    def posterior(self, x: Tensor) -> tuple[Tensor, float]:
        """Mean `(D,)` and variance of θ given all of x, `(n, D)`."""
        variance = 1 / (1 + len(x) / self.variance)
        return variance * x.sum(0) / self.variance, variance

    def log_evidence_ratio(self, x: Tensor) -> float:
        """log p(x_1, ..., x_n) − Σ log p(x_i), of x `(n, D)`."""
        n = len(x)
        covariance = self.variance * torch.eye(n) + torch.ones(n, n)
        together = MultivariateNormal(torch.zeros(n), covariance).log_prob(x.T)
        alone = Normal(0.0, (1 + self.variance) ** 0.5).log_prob(x)
        return float(together.sum() - alone.sum())

    def energy(self) -> ConditionalEnergy:
        theta, _ = self.simulate(500, seed=0)
        net = _GaussianLogRatio(self.variance, theta)
        support = support_of(self.prior, theta)
        shape = torch.Size((self.dim,))
        return ConditionalEnergy(
            net, self.prior, support, theta, nn.Identity(), shape, self.prior
        )

    def flow(self, width: float = 1.0, shift: float = 0.0) -> "GaussianPosteriorFlow":
        return GaussianPosteriorFlow(self, width, shift)

    def pair(self, width: float = 1.0, shift: float = 0.0) -> ModelPair:
        return ModelPair(self.flow(width, shift), self.energy())


class _GaussianLogRatio(nn.Module):
    """log p(x | θ) / p(x), of standardised θ."""

    def __init__(self, variance: float, theta: Tensor) -> None:
        super().__init__()
        self.variance = variance
        loc, scale = location_and_scale(theta)
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        theta = input * self.scale + self.loc
        scale = self.variance**0.5
        likelihood = Normal(theta, scale, validate_args=False).log_prob(condition)
        evidence = Normal(0.0, (1 + self.variance) ** 0.5).log_prob(condition)
        return (likelihood - evidence).sum(-1)


class GaussianPosteriorFlow(ConditionalFlow):
    """The posterior given one x, `width` times as wide, shifted by `shift` of its sds."""

    embedding_net = None

    def __init__(self, task: ConjugateGaussian, width: float, shift: float) -> None:
        nn.Module.__init__(self)
        self.task, self.width, self.shift = task, width, shift
        self._input_shape = self._condition_shape = torch.Size((task.dim,))
        infinite = torch.full((task.dim,), torch.inf)
        self.support = Support(-infinite, infinite)

    def given(self, condition: Tensor) -> Conditional:
        scale = self.task.posterior(condition[:1])[1] ** 0.5
        mean = condition / (1 + self.task.variance) + self.shift * scale
        return _NormalGivenX(Normal(mean, self.width * scale, validate_args=False))


class _NormalGivenX(Conditional):
    def __init__(self, normal: Normal) -> None:
        self.normal = normal

    def log_prob(self, input: Tensor) -> Tensor:
        return self.normal.log_prob(input).sum(-1)

    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        draws = self.normal.rsample((num,))
        return draws, self.log_prob(draws)
