"""A Wasserstein GAN with gradient penalty (Gulrajani et al., arXiv:1704.00028)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

PENALTY = 10.0
CRITIC_STEPS = 5
NOISE_FEATURES = 8
BETAS = (0.0, 0.9)
"""Adam's betas. They, the penalty and the critic's steps are those of the paper."""


class WGAN:
    """A generator and its critic, for vectors.

    The critic's loss is E[c(g(z))] − E[c(x)] + 10 E[(|∇c| − 1)²], with its gradient taken
    on lines between data and generated points. The generator's loss is −E[c(g(z))].
    """

    def __init__(self, samples: Tensor, learning_rate: float, hidden: int = 128) -> None:
        """
        Args:
            samples: Points to learn from, shape `(N, D)`.
            learning_rate: Adam's learning rate for both networks.
            hidden: Width of both networks.
        """
        self.mean, self.sd = samples.mean(0), samples.std(0)
        self.data = (samples - self.mean) / self.sd
        features = samples.shape[-1]
        self.generator = _mlp(NOISE_FEATURES, hidden, features)
        self.critic = _mlp(features, hidden, 1)
        self.of_generator, self.of_critic = (
            torch.optim.Adam(net.parameters(), lr=learning_rate, betas=BETAS, fused=True)
            for net in (self.generator, self.critic)
        )

    def sample(self, num: int) -> Tensor:
        """Return generated points, shape `(num, D)`."""
        with torch.no_grad():
            return self._generate(num) * self.sd + self.mean

    def epoch(self, batch_size: int) -> None:
        """Train on all samples: the critic on each batch, the generator on each fifth."""
        for number, batch in enumerate(self._batches(batch_size)):
            made = self._generate(len(batch)).detach()
            loss = self.critic(made).mean() - self.critic(batch).mean()
            _descend(self.of_critic, loss + PENALTY * self._penalty(batch, made))
            if number % CRITIC_STEPS == 0:
                scores = self.critic(self._generate(batch_size))
                _descend(self.of_generator, -scores.mean())

    def _batches(self, size: int) -> Iterator[Tensor]:
        """Yield shuffled batches of five passes: one pass for each critic step."""
        for _ in range(CRITIC_STEPS):
            yield from self.data[torch.randperm(len(self.data))].split(size)

    def _generate(self, num: int) -> Tensor:
        return self.generator(torch.randn(num, NOISE_FEATURES))

    def _penalty(self, batch: Tensor, made: Tensor) -> Tensor:
        between = torch.lerp(made, batch, torch.rand(len(batch), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(
            self.critic(between).sum(), between, create_graph=True
        )
        return (slope.norm(dim=-1) - 1).square().mean()


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, outputs),
    )


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
