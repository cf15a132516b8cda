"""The two models of a posterior, and the embedding network that they may share."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_jeffreys.models.conditional import Conditional
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.sampling.blocks import blocks
from sbi_jeffreys.sampling.rejection import is_inside


class ModelPair(nn.Module):
    """A flow and an energy, which share an embedding network or have one each.

    The methods serve both cases, so callers need not tell them apart.
    """

    def __init__(self, flow: ConditionalFlow, energy: ConditionalEnergy) -> None:
        r"""
        Args:
            flow: $p_\phi(\theta | x)$.
            energy: $f_\psi(\theta, x)$.
        """
        super().__init__()
        self.flow = flow
        self.energy = energy

    @property
    def shares_embedding(self) -> bool:
        """Whether both models have the same embedding network, as one object."""
        return self.energy.embedding_net is self.flow.embedding_net

    def given(
        self, x: Tensor, function: Callable[..., Tensor] | None = None
    ) -> tuple[Conditional, Callable[[Tensor], Tensor]]:
        r"""Return $p_\phi(\cdot | x)$ and $f_\psi(\cdot, x)$.

        With a shared embedding, x is embedded once for both.

        Args:
            x: Data, shape `(batch, *condition_shape)`.
            function: A method of the energy to return instead of f, such as `members`.
        """
        flow = self.flow.given(x)
        energy = partial(function or self.energy, condition=x)
        if self.shares_embedding:
            energy = partial(energy, embedded=flow.embedded)
        return flow, energy

    def energy_with_own_embedding(self) -> ConditionalEnergy:
        """Return the energy with a copy of its embedding, for training the flow alone.

        It has the same log-ratio network as the pair's energy; all else is copied.
        """
        return deepcopy(self.energy, {id(self.energy.net): self.energy.net})

    def energy_beside(
        self, flow: ConditionalFlow, energy: ConditionalEnergy
    ) -> ConditionalEnergy:
        """Give an energy the embedding of a flow, if this pair shares one.

        The embeddings must still have equal weights. If they do not, or if this pair does
        not share an embedding, the energy keeps its own.

        Args:
            flow: This pair's flow, or a copy of it.
            energy: A copy of this pair's energy, or of an energy made from it. It is
                changed in place.

        Returns:
            The energy.
        """
        embedding_net = flow.embedding_net
        if (
            embedding_net is not None
            and self.shares_embedding
            and _have_equal_weights(energy.embedding_net, embedding_net)
        ):
            energy.embedding_net = embedding_net
        return energy

    @torch.no_grad()
    def weighted_draws(
        self, x: Tensor, num: int, prior: Distribution, size: int
    ) -> tuple[Tensor, Tensor]:
        r"""Draw from the flow, with weights $\log w = f(\theta, x) - \log p(\theta | x)$.

        Args:
            x: Data, shape `(batch, *condition_shape)`.
            num: Number of draws for each x.
            prior: Draws outside its support have the weight zero.
            size: Most draws evaluated at a time, over all x together.

        Returns:
            Draws, `(num, batch, D)`, and log weights in nats, `(num, batch)`.

        Raises:
            FloatingPointError: If a weight is NaN or plus infinity.
        """
        theta = x.new_empty((num, len(x), *self.flow.input_shape))
        log_weights = x.new_empty((num, len(x)))
        for rows, columns in blocks(num, len(x), size):
            flow, energy = self.given(x[columns])
            block = log_weights[rows, columns]
            draws, log_p = flow.rsample_and_log_prob(len(block))
            theta[rows, columns] = draws
            inside = is_inside(prior, draws)
            block.copy_(torch.where(inside, energy(draws) - log_p, -torch.inf))
        bad = ~(log_weights < torch.inf)
        if bool(bad.any()):
            raise FloatingPointError(
                f"{int(bad.sum())} of {bad.numel()} importance weights of the energy "
                "against the flow are NaN or infinite."
            )
        return theta, log_weights


def _have_equal_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules have equal states with at least one entry."""
    state, others = one.state_dict(), other.state_dict()
    return (
        bool(state)
        and state.keys() == others.keys()
        and all(
            value.shape == others[name].shape and torch.equal(value, others[name])
            for name, value in state.items()
        )
    )
