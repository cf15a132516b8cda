r"""The conditional flow $p_\phi(\theta | x)$: evaluated, and sampled differentiably."""

from typing import Any

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from sbi.neural_nets.estimators import NFlowsFlow
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.utils.sbiutils import Standardize
from torch import Tensor, nn

from sbi_jeffreys.models.conditional import Conditional, condition_on
from sbi_jeffreys.models.transforms import (
    ConditionalAffine,
    Layers,
    Mixing,
    SplineCoupling,
)
from sbi_jeffreys.preprocessing.log_scale import LogScale
from sbi_jeffreys.preprocessing.scaling import location_and_scale
from sbi_jeffreys.preprocessing.screening import Screening, related_to
from sbi_jeffreys.preprocessing.support import Support
from sbi_jeffreys.preprocessing.training_range import TrainingRange

Shape = torch.Size | tuple[int, ...]


class ConditionalFlow(ConditionalDensityEstimator):
    r"""A density estimator in standardised, unconstrained space, seen in $\theta$'s own.

    With $u(\theta)$ the map of the support and $p_u$ the estimator,

    .. math:: \log p(\theta | x) = \log p_u(u(\theta) | x) + \log |du / d\theta|,

    so no sample leaves the support. Densities are in nats.
    """

    net: ConditionalDensityEstimator

    def __init__(self, net: ConditionalDensityEstimator, support: Support) -> None:
        r"""
        Args:
            net: Estimator of u given x, one that `condition_on` knows.
            support: The map from $\theta$ to u.
        """
        super().__init__(net, net.input_shape, net.condition_shape)
        self.support = support

    @property
    def embedding_net(self) -> nn.Module | None:
        """The network that embeds (and standardises) the condition."""
        return self.net.embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return log densities in nats, shape `(sample, batch)`.

        Minus infinity outside of the prior's bounds.

        Args:
            input: Parameters, `(sample, batch, *input_shape)` or `(batch, ...)`.
            condition: Data, `(batch, *condition_shape)` or `(sample, batch, ...)`.
        """
        input = input.to(self.support.low.dtype)
        u, log_det = self.support(input)
        log_prob = self.net.log_prob(u, condition) + log_det
        return torch.where(self.support.is_outside(input), -torch.inf, log_prob)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return minus the log densities, shape `(batch,)`."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: Shape, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return samples of shape `(*sample_shape, batch, *input_shape)`."""
        return self.sample_and_log_prob(sample_shape, condition)[0]

    def sample_and_log_prob(
        self, sample_shape: Shape, condition: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        r"""Return samples and their log densities, differentiable to $\phi$.

        Args:
            sample_shape: Shape of the draws for each condition.
            condition: Data, shape `(batch, *condition_shape)`.

        Returns:
            Samples, `(*sample_shape, batch, *input_shape)`, reparameterised, and log
            densities, `(*sample_shape, batch)`, in nats.
        """
        num = torch.Size(sample_shape).numel()
        theta, log_prob = self.given(condition).rsample_and_log_prob(num)
        shape = (*sample_shape, len(condition))
        return theta.reshape(*shape, *self.input_shape), log_prob.reshape(shape)

    def given(self, condition: Tensor) -> Conditional:
        r"""Return $p_\phi(\cdot | x)$, to evaluate and to sample with x embedded once.

        Args:
            condition: Data, shape `(batch, *condition_shape)`.
        """
        return _InSupport(condition_on(self.net, condition), self.support)

    def inverse_transform(self, input: Tensor, condition: Tensor) -> Tensor:
        r"""Return the base noise, `(..., *input_shape)`, that is mapped to `input`.

        Args:
            input: Parameters, shape `(*batch, *input_shape)`.
            condition: Data, shape `(*batch, *condition_shape)`; batches are broadcast.
        """
        u, _ = self.support(input)
        if not isinstance(self.net, NFlowsFlow):
            return self.net.inverse_transform(u, condition)
        # sbi 0.27 hands nflows the condition as it is, without embedding it.
        num_axes = len(self.condition_shape)
        batch = torch.broadcast_shapes(u.shape[:-1], condition.shape[:-num_axes])
        rows = u.expand(*batch, -1).reshape(-1, u.shape[-1])
        conditions = condition.expand(*batch, *self.condition_shape)
        embed = self.net.net._embedding_net
        context = embed(conditions.reshape(-1, *self.condition_shape))
        noise, _ = self.net.net._transform(rows, context=context)
        return noise.reshape(*batch, -1)


class _InSupport(Conditional):
    def __init__(self, unconstrained: Conditional, support: Support) -> None:
        self.unconstrained, self.support = unconstrained, support
        self.embedded = unconstrained.embedded

    def log_prob(self, input: Tensor) -> Tensor:
        u, log_det = self.support(input)
        return self.unconstrained.log_prob(u) + log_det

    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        u, log_prob = self.unconstrained.rsample_and_log_prob(num)
        theta, log_det = self.support.inverse(u)
        return theta, log_prob + log_det


class SplineFlow(NFlowsFlow):
    """A neural spline flow that embeds each condition once for all its samples."""

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return log densities in nats, shape `(sample, batch)`; see `sbi`'s base."""
        expanded, conditions, batch = self._broadcast_and_align(input, condition)
        if condition.dim() == len(self.condition_shape) + 1:
            conditions = conditions[0]
        else:
            conditions = conditions.reshape(-1, *self.condition_shape)
        rows = expanded.reshape(-1, len(conditions), *self.input_shape)
        return condition_on(self, conditions).log_prob(rows).reshape(-1, batch)


def standardizing_embedding(
    theta: Tensor, x: Tensor, embedding_net: nn.Module | None
) -> nn.Module:
    """Return a network that standardises x, keeps it in range, and embeds it.

    Args:
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, *condition_shape)`, standardised entry by entry.
        embedding_net: Applied to standardised x, in its `TrainingRange`. By default x is
            standardised on its `LogScale`, and goes through `Screening` at last.
    """
    if embedding_net is not None:
        standardize = Standardize(*location_and_scale(x))
        return nn.Sequential(standardize, TrainingRange(standardize(x)), embedding_net)
    log_scale, screening = LogScale(x), Screening(related_to(theta, x))
    x = log_scale(x)
    standardize = Standardize(*location_and_scale(x))
    return nn.Sequential(log_scale, standardize, TrainingRange(standardize(x)), screening)


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
        x: Simulations, shape `(N, *condition_shape)`, from which it is standardised.
        embedding_net: Applied to the standardised x; by default what
            `standardizing_embedding` has.
        hidden_features: Width of each layer's network.
        num_transforms: Number of coupling layers.
        num_bins: Number of bins of each spline.
        num_blocks: Residual blocks of each layer's network.
        tail_bound: Splines act on [-tail_bound, tail_bound].

    Returns:
        The identity flow (a standard normal) at initialisation.
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
