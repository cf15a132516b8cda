r"""Distributions given a batch of x: evaluated, and sampled differentiably."""

from abc import ABC, abstractmethod
from functools import singledispatch
from typing import Any

import torch
from nflows.distributions import StandardNormal
from sbi.neural_nets.estimators import NFlowsFlow, ZukoFlow
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor

from sbi_jeffreys.models.transforms import Layers


class Conditional(ABC):
    r"""$p(\cdot | x)$ for a batch of x; what depends on x alone is computed once.

    Attributes:
        embedded: The embedded conditions, `(batch, features)`, or None if not at hand.
    """

    embedded: Tensor | None = None

    @abstractmethod
    def log_prob(self, input: Tensor) -> Tensor:
        """Return log densities in nats, `(S, batch)`, of `(S, batch, *input_shape)`."""

    @abstractmethod
    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        """Return `num` reparameterised draws per condition, and their log densities.

        Returns:
            Draws, shape `(num, batch, *input_shape)`, and log densities in nats,
            `(num, batch)`, both differentiable to the estimator's parameters.
        """


@singledispatch
def condition_on(
    estimator: ConditionalDensityEstimator, condition: Tensor
) -> Conditional:
    """Return the distribution given a batch of conditions.

    Register another estimator's type with `@condition_on.register` to train it.

    Args:
        estimator: A conditional density estimator.
        condition: Data, shape `(batch, *condition_shape)`.

    Raises:
        TypeError: If this type of estimator is not known to sample differentiably.
    """
    raise TypeError(
        f"`density_estimator` builds a {type(estimator).__name__}, which can't be "
        "sampled differentiably; the reverse KL divergence needs that. Use 'nsf', 'maf' "
        "or another nflows or zuko flow."
    )


class _NFlowsConditional(Conditional):
    embedded: Tensor
    context: Any

    def __init__(self, estimator: NFlowsFlow, condition: Tensor) -> None:
        flow = estimator.net
        if not isinstance(flow._distribution, StandardNormal):
            raise TypeError(
                "`density_estimator` builds an nflows flow with a base distribution "
                f"{type(flow._distribution).__name__}, as 'made' does, which can't be "
                "sampled differentiably. Use 'nsf' or 'maf'."
            )
        self.base, self.transform = flow._distribution, flow._transform
        self.input_shape = estimator.input_shape
        self.batch = len(condition)
        self.embedded = self.context = flow._embedding_net(condition)
        self.embeds_once = isinstance(self.transform, Layers)
        if self.embeds_once:
            self.context = self.transform.given(self.embedded)

    def log_prob(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.input_shape.numel())
        noise, log_det = self.transform(rows, context=self._context(len(input)))
        return (self.base.log_prob(noise) + log_det).reshape(-1, self.batch)

    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        features = self.input_shape.numel()
        noise = torch.randn_like(self.embedded.new_empty(num * self.batch, features))
        u, log_det = self.transform.inverse(noise, context=self._context(num))
        log_prob = self.base.log_prob(noise) - log_det
        return (
            u.reshape(num, self.batch, *self.input_shape),
            log_prob.reshape(num, self.batch),
        )

    def _context(self, num: int) -> Any:
        if self.embeds_once:
            return self.context
        return self.context.repeat(num, *[1] * (self.context.ndim - 1))


class _ZukoConditional(Conditional):
    def __init__(self, estimator: ZukoFlow, condition: Tensor) -> None:
        self.estimator, self.condition = estimator, condition

    def log_prob(self, input: Tensor) -> Tensor:
        return self.estimator.log_prob(input, self.condition)

    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        return self.estimator.sample_and_log_prob(torch.Size((num,)), self.condition)


condition_on.register(NFlowsFlow, _NFlowsConditional)
condition_on.register(ZukoFlow, _ZukoConditional)
