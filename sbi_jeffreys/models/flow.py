r"""The conditional flow $p_\phi(\theta | x)$: evaluated, and sampled differentiably."""

from typing import Any

import torch
from sbi.neural_nets.estimators import NFlowsFlow
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_jeffreys._sbi import nflows_parts
from sbi_jeffreys.data.checks import check_observations
from sbi_jeffreys.models.conditional import Conditional, condition_on
from sbi_jeffreys.preprocessing.support import Support
from sbi_jeffreys.preprocessing.true_support import is_exact
from sbi_jeffreys.sampling.rejection import is_inside

Shape = torch.Size | tuple[int, ...]


class ConditionalFlow(ConditionalDensityEstimator):
    r"""A density estimator of unconstrained parameters, as a density of $\theta$.

    With $u(\theta)$ the map of the support to standardised, unconstrained space, and
    $p_u$ the estimator there,

    .. math:: \log p(\theta | x) = \log p_u(u(\theta) | x) + \log |du / d\theta|,

    so no sample leaves the support. Densities are in nats.

    Attributes:
        has_nan: Whether some x that it is trained on have NaN.
    """

    net: ConditionalDensityEstimator
    has_nan: bool = False

    def __init__(
        self,
        net: ConditionalDensityEstimator,
        support: Support,
        has_nan: bool = False,
    ) -> None:
        r"""
        Args:
            net: Estimator of u given x, of a type that `condition_on` knows.
            support: The map from $\theta$ to u.
            has_nan: See the attributes.
        """
        super().__init__(net, net.input_shape, net.condition_shape)
        self.support = support
        self.has_nan = has_nan

    @property
    def embedding_net(self) -> nn.Module | None:
        """The network that standardises and embeds the condition."""
        return self.net.embedding_net

    def never_leaves(self, prior: Distribution) -> bool:
        """Return whether all samples are known to be inside a prior, without a look."""
        if not self.support.is_exact or not is_exact(prior):
            return False
        far = self.support.low.new_tensor([[-100.0], [100.0]])
        corners, _ = self.support.inverse(far.expand(2, len(self.support.low)))
        return bool(is_inside(prior, corners).all())

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return log densities in nats, shape `(sample, batch)`.

        They are minus infinity outside of the prior's bounds.

        Args:
            input: Parameters, `(sample, batch, *input_shape)` or `(batch, ...)`.
            condition: Data, `(batch, *condition_shape)` or `(sample, batch, ...)`.
        """
        input = input.to(self.support.low.dtype)
        u, log_det = self.support(input)
        log_prob = self.net.log_prob(u, condition) + log_det
        return torch.where(self.support.is_outside(input), -torch.inf, log_prob)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return negative log densities in nats, shape `(batch,)`.

        Args:
            input: Parameters, shape `(batch, *input_shape)`.
            condition: Data, shape `(batch, *condition_shape)`.
        """
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: Shape, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return samples, shape `(*sample_shape, batch, *input_shape)`.

        Args:
            sample_shape: Shape of the draws for each condition.
            condition: Data, shape `(batch, *condition_shape)`.

        Raises:
            ValueError: If they are infinite, or have NaN and training had none.
        """
        check_observations(condition, self.has_nan)
        return self.sample_and_log_prob(sample_shape, condition)[0]

    def sample_and_log_prob(
        self, sample_shape: Shape, condition: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        r"""Return reparameterised samples and their log densities.

        Args:
            sample_shape: Shape of the draws for each condition.
            condition: Data, shape `(batch, *condition_shape)`.

        Returns:
            Samples, shape `(*sample_shape, batch, *input_shape)`, and log densities in
            nats, shape `(*sample_shape, batch)`. Both are differentiable to $\phi$.
        """
        num = torch.Size(sample_shape).numel()
        theta, log_prob = self.given(condition).rsample_and_log_prob(num)
        shape = (*sample_shape, len(condition))
        return theta.reshape(*shape, *self.input_shape), log_prob.reshape(shape)

    def given(self, condition: Tensor) -> Conditional:
        r"""Return $p_\phi(\cdot | x)$, which embeds x once for all that is done with it.

        Args:
            condition: Data, shape `(batch, *condition_shape)`.
        """
        return _WithinSupport(condition_on(self.net, condition), self.support)

    @property
    def takes_embedded(self) -> bool:
        """Whether the estimator can be given embedded conditions."""
        return isinstance(self.net, NFlowsFlow)

    def given_embedded(self, embedded: Tensor) -> Conditional:
        r"""Return $p_\phi(\cdot | x)$ for conditions that are embedded already.

        Args:
            embedded: Embedded data, shape `(batch, features)`.
        """
        return _WithinSupport(condition_on(self.net, None, embedded), self.support)

    def inverse_transform(self, input: Tensor, condition: Tensor) -> Tensor:
        r"""Return the base noise, `(..., *input_shape)`, that is mapped to `input`.

        Args:
            input: Parameters, shape `(*batch, *input_shape)`.
            condition: Data, shape `(*batch, *condition_shape)`. Batches are broadcast.
        """
        u, _ = self.support(input)
        if not isinstance(self.net, NFlowsFlow):
            return self.net.inverse_transform(u, condition)
        # sbi 0.27 passes the condition to nflows without embedding it.
        num_axes = len(self.condition_shape)
        batch = torch.broadcast_shapes(u.shape[:-1], condition.shape[:-num_axes])
        rows = u.expand(*batch, -1).reshape(-1, u.shape[-1])
        conditions = condition.expand(*batch, *self.condition_shape)
        _, transform, embedding_net = nflows_parts(self.net)
        context = embedding_net(conditions.reshape(-1, *self.condition_shape))
        noise, _ = transform(rows, context=context)
        return noise.reshape(*batch, -1)


class _WithinSupport(Conditional):
    """A distribution in unconstrained space, as a distribution on the support."""

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
