r"""Distributions $p(\cdot | x)$ for a batch of x: evaluated, and sampled differentiably.

To add a flow, write a module like `spline_flow`. It has an estimator, a `Conditional`
that is registered with `condition_on.register`, and a function that builds the estimator
from parameters and simulations. Users pass this function as `density_estimator`.
"""

from abc import ABC, abstractmethod
from functools import singledispatch
from typing import Any

import torch
from nflows.distributions import StandardNormal
from sbi.neural_nets.estimators import NFlowsFlow, ZukoFlow
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor

from sbi_jeffreys._sbi import nflows_parts


class Conditional(ABC):
    r"""$p(\cdot | x)$ for a batch of x. What depends on x alone is computed once.

    Attributes:
        embedded: The embedded conditions, shape `(batch, features)`. None if the
            estimator does not give access to them.
    """

    embedded: Tensor | None = None

    @abstractmethod
    def log_prob(self, input: Tensor) -> Tensor:
        """Return log densities in nats, `(S, batch)`, of `(S, batch, *input_shape)`."""

    @abstractmethod
    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        """Return reparameterised draws for each condition, and their log densities.

        Args:
            num: Number of draws for each condition.

        Returns:
            Draws, shape `(num, batch, *input_shape)`, and log densities in nats, shape
            `(num, batch)`. Both are differentiable to the estimator's parameters.
        """


@singledispatch
def condition_on(
    estimator: ConditionalDensityEstimator,
    condition: Tensor | None,
    embedded: Tensor | None = None,
) -> Conditional:
    """Return the distribution given a batch of conditions.

    To train a flow of your own, register the type of its estimator with
    `@condition_on.register`.

    Args:
        estimator: A conditional density estimator.
        condition: Data, shape `(batch, *condition_shape)`; None if they are embedded.
        embedded: The embedded data, shape `(batch, features)`, if they are known already.
            Only flows of nflows take them.

    Raises:
        TypeError: If no estimator of this type is registered.
    """
    raise TypeError(
        f"`density_estimator` builds a {type(estimator).__name__}, which can't be "
        "sampled differentiably. The reverse KL divergence needs that. Use 'nsf', 'maf' "
        "or another nflows or zuko flow, or register the type of your own estimator with "
        "`condition_on.register`."
    )


@condition_on.register(NFlowsFlow)
class NFlowsConditional(Conditional):
    """A flow of nflows. Its condition is embedded once."""

    embedded: Tensor

    def __init__(
        self,
        estimator: NFlowsFlow,
        condition: Tensor | None,
        embedded: Tensor | None = None,
    ) -> None:
        """
        Args:
            estimator: A flow whose base distribution is a standard normal.
            condition: Data, shape `(batch, *condition_shape)`; None if they are embedded.
            embedded: The embedded data, shape `(batch, features)`, if they are known.

        Raises:
            TypeError: If the base distribution is another one.
        """
        self.base, self.transform, embedding_net = nflows_parts(estimator)
        if not isinstance(self.base, StandardNormal):
            raise TypeError(
                "`density_estimator` builds an nflows flow with the base distribution "
                f"{type(self.base).__name__}, as 'made' does. It can't be sampled "
                "differentiably. Use 'nsf' or 'maf'."
            )
        self.input_shape = estimator.input_shape
        self.embedded = embedding_net(condition) if embedded is None else embedded
        self.batch = len(self.embedded)

    def log_prob(self, input: Tensor) -> Tensor:
        """Return log densities in nats, `(S, batch)`, of `(S, batch, *input_shape)`."""
        rows = input.reshape(-1, self.input_shape.numel())
        noise, log_det = self.transform(rows, context=self.context(len(input)))
        return (self.base.log_prob(noise) + log_det).reshape(-1, self.batch)

    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        """Return draws `(num, batch, *input_shape)` and log densities `(num, batch)`."""
        features = self.input_shape.numel()
        noise = torch.randn_like(self.embedded.new_empty(num * self.batch, features))
        u, log_det = self.transform.inverse(noise, context=self.context(num))
        log_prob = self.base.log_prob(noise) - log_det
        return (
            u.reshape(num, self.batch, *self.input_shape),
            log_prob.reshape(num, self.batch),
        )

    def context(self, num: int) -> Any:
        """Return what the transform needs of x, for `num` rows of each condition."""
        return self.embedded.repeat(num, *[1] * (self.embedded.ndim - 1))


@condition_on.register(ZukoFlow)
class ZukoConditional(Conditional):
    """A flow of zuko."""

    def __init__(self, estimator: ZukoFlow, condition: Tensor) -> None:
        self.estimator, self.condition = estimator, condition

    def log_prob(self, input: Tensor) -> Tensor:
        """Return log densities in nats, `(S, batch)`, of `(S, batch, *input_shape)`."""
        return self.estimator.log_prob(input, self.condition)

    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        """Return draws `(num, batch, *input_shape)` and log densities `(num, batch)`."""
        return self.estimator.sample_and_log_prob(torch.Size((num,)), self.condition)
