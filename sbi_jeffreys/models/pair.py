"""The two models of a posterior, flow and energy, at the same observations."""

from collections.abc import Callable
from functools import partial

import torch
from sbi.utils.sbiutils import within_support
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_jeffreys.models.conditional import Conditional
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.sampling.blocks import blocks


class ModelPair(nn.Module):
    """The flow and the energy, which may share an embedding network."""

    def __init__(self, flow: ConditionalFlow, energy: ConditionalEnergy) -> None:
        r"""
        Args:
            flow: $p_\phi(\theta | x)$.
            energy: $f_\psi(\theta, x)$.
        """
        super().__init__()
        self.flow = flow
        self.energy = energy

    def given(
        self, x: Tensor, function: Callable[..., Tensor] | None = None
    ) -> tuple[Conditional, Callable[[Tensor], Tensor]]:
        r"""Return $p_\phi(\cdot | x)$ and $f_\psi(\cdot, x)$, x being embedded once.

        Args:
            x: Data, shape `(batch, *condition_shape)`.
            function: Of the energy, instead of f itself: its `members`.
        """
        flow = self.flow.given(x)
        energy = partial(function or self.energy, condition=x)
        if self.energy.embedding_net is self.flow.embedding_net:
            energy = partial(energy, embedded=flow.embedded)
        return flow, energy

    @torch.no_grad()
    def weighted_draws(
        self, x: Tensor, num: int, prior: Distribution, size: int
    ) -> tuple[Tensor, Tensor]:
        r"""Draw from the flow, with weights $\log w = f(\theta, x) - \log p(\theta | x)$.

        Args:
            x: Data, shape `(batch, *condition_shape)`.
            num: Draws for each.
            prior: Outside of its support weights are zero.
            size: Most draws at a time, for all x together.

        Returns:
            Draws, `(num, batch, D)`, and log weights in nats, `(num, batch)`.

        Raises:
            FloatingPointError: If a weight is NaN or infinitely large.
        """
        theta = x.new_empty((num, len(x), *self.flow.input_shape))
        log_weights = x.new_empty((num, len(x)))
        for rows, columns in blocks(num, len(x), size):
            flow, energy = self.given(x[columns])
            block = log_weights[rows, columns]
            draws, log_p = flow.rsample_and_log_prob(len(block))
            inside = within_support(prior, draws.flatten(0, 1)).reshape(block.shape)
            theta[rows, columns] = draws
            block.copy_(torch.where(inside, energy(draws) - log_p, -torch.inf))
        bad = ~(log_weights < torch.inf)
        if bool(bad.any()):
            raise FloatingPointError(
                f"{int(bad.sum())} of {bad.numel()} importance weights of the energy "
                "against the flow are NaN or infinite."
            )
        return theta, log_weights
