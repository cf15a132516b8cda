"""The default flow: an affine layer, then spline couplings, given embedded x."""

from typing import Any

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from sbi.neural_nets.estimators import NFlowsFlow
from torch import Tensor, nn

from sbi_jeffreys._sbi import broadcast_and_align
from sbi_jeffreys.models.conditional import NFlowsConditional, condition_on
from sbi_jeffreys.models.transforms import (
    ConditionalAffine,
    Layers,
    LayersGivenContext,
    Mixing,
    SplineCoupling,
)
from sbi_jeffreys.preprocessing.embedding import standardizing_embedding


class SplineFlow(NFlowsFlow):
    """A neural spline flow that embeds each condition once for all its samples."""

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return log densities in nats, shape `(sample, batch)`, as sbi's estimators do.

        Args:
            input: Parameters, `(sample, batch, *input_shape)` or `(batch, ...)`.
            condition: Data, `(batch, *condition_shape)` or `(sample, batch, ...)`.
        """
        expanded, conditions, batch = broadcast_and_align(self, input, condition)
        if condition.dim() == len(self.condition_shape) + 1:
            conditions = conditions[0]
        else:
            conditions = conditions.reshape(-1, *self.condition_shape)
        rows = expanded.reshape(-1, len(conditions), *self.input_shape)
        return condition_on(self, conditions).log_prob(rows).reshape(-1, batch)


@condition_on.register(SplineFlow)
class SplineConditional(NFlowsConditional):
    """A spline flow whose layers compute once what depends on x alone."""

    def __init__(
        self,
        estimator: SplineFlow,
        condition: Tensor | None,
        embedded: Tensor | None = None,
    ) -> None:
        super().__init__(estimator, condition, embedded)
        self.layers: LayersGivenContext = self.transform.given(self.embedded)

    def context(self, num: int) -> LayersGivenContext:
        """Return the layers given x, which serve any number of rows."""
        return self.layers


def build_spline_flow(
    theta: Tensor,
    x: Tensor,
    embedding_net: nn.Module | None = None,
    hidden_features: int = 50,
    num_transforms: int = 5,
    num_bins: int = 10,
    num_blocks: int = 2,
    tail_bound: float = 3.0,
) -> SplineFlow:
    """Build the default flow, "nsf": an affine layer, then coupling spline layers.

    Args:
        theta: Standardised, unconstrained parameters, shape `(N, D)`.
        x: Simulations, shape `(N, *condition_shape)`. They give the standardisation of x.
        embedding_net: Applied to standardised x. The default is that of
            `standardizing_embedding`.
        hidden_features: Width of each layer's network.
        num_transforms: Number of coupling layers.
        num_bins: Number of bins of each spline.
        num_blocks: Number of residual blocks of each layer's network.
        tail_bound: Splines act on [-tail_bound, tail_bound].

    Returns:
        The flow. At initialisation it is the identity, so its density is that of a
        standard normal.
    """
    embed = standardizing_embedding(theta, x, embedding_net)
    with torch.no_grad():
        context_features = embed.to(x.device)(x[:2]).shape[-1]
    features = theta.shape[-1]
    layers: list[nn.Module] = [
        ConditionalAffine(features, context_features, hidden_features, num_blocks)
    ]
    for i in range(num_transforms):
        layers += [
            SplineCoupling(
                features,
                moves_first_half=i % 2 == 1,
                context_features=context_features,
                hidden_features=hidden_features,
                num_blocks=num_blocks,
                num_bins=num_bins,
                tail_bound=tail_bound,
            ),
            Mixing(features),
        ]
    flow = Flow(Layers(features, layers), StandardNormal((features,)), embed)
    return SplineFlow(flow, theta[0].shape, x[0].shape)
