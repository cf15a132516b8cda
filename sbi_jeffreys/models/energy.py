"""The conditional energy-based model: log prior plus a learned log-ratio."""

from typing import Any, Self

import torch
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_jeffreys.preprocessing.scaling import location_and_scale
from sbi_jeffreys.preprocessing.support import Support
from sbi_jeffreys.preprocessing.true_support import evaluated_anywhere


class ConditionalEnergy(nn.Module):
    r"""$f(\theta, x) = \log p(\theta) + r(\theta, x)$, an unnormalised log posterior.

    The model is $q(\theta | x) = e^{f(\theta, x)} / Z(x)$. Its energy, in the sense of
    physics, is $-f$. If p is the prior, r learns the log-ratio
    $\log p(x | \theta) / p(x)$. Where r equals it, $Z = 1$. The network gets
    $\theta$ standardised in its own space, because there r is smooth up to the edges of
    the prior. A parameter on a half line may have a long tail, so the network gets it on
    its log scale.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        base: Distribution,
        support: Support,
        theta: Tensor,
        embedding_net: nn.Module,
        condition_shape: torch.Size,
        prior: Distribution | None = None,
        log_prior_floor: float = -torch.inf,
    ) -> None:
        """
        Args:
            net: r, called with standardised parameters, `(sample, batch, D)`, and
                embedded conditions, `(batch, features)`. It returns `(sample, batch)`.
                With several members it returns `(member, sample, batch)`, as
                `LogRatioEnsemble` does, and r is their average.
            base: p, with a `log_prob` that is differentiable to its argument.
            support: The bounds of p, which is only evaluated within them.
            theta: Parameters that give the standardisation, shape `(N, D)`.
            embedding_net: Embeds conditions, `(batch, *condition_shape)`.
            condition_shape: Shape of one condition.
            prior: The prior of the simulations trained on, which may differ from the
                base. None if it has no density.
            log_prior_floor: Lower bound on the prior's log density in nats, used where
                the prior is divided out of the energy.
        """
        super().__init__()
        self.net = net
        self.base = base
        self.support = support
        self.embedding_net = embedding_net
        self.condition_shape = condition_shape
        self.prior = evaluated_anywhere(prior)
        self.log_prior_floor = log_prior_floor
        loc, scale = location_and_scale(support.log_half_lines(theta))
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move the base and the prior with the parameters. They are not modules."""
        before = self.loc.device
        super()._apply(fn, recurse)
        if self.loc.device != before:
            self.base = move_distribution_to_device(self.base, self.loc.device)
            if self.prior is not None:
                self.prior = move_distribution_to_device(self.prior, self.loc.device)
        return self

    def standardize(self, theta: Tensor) -> Tensor:
        """Return parameters as the network gets them.

        Args:
            theta: Parameters inside the support, shape `(..., D)`.
        """
        return (self.support.log_half_lines(theta) - self.loc) / self.scale

    def forward(
        self, input: Tensor, condition: Tensor, embedded: Tensor | None = None
    ) -> Tensor:
        """Return f, an unnormalised log density, in nats, shape `(sample, batch)`.

        It is minus infinity outside of the prior's bounds.

        Args:
            input: Parameters, shape `(sample, batch, D)` or `(sample, 1, D)`.
            condition: Data, shape `(batch, ...)`.
            embedded: The embedded data, if they are known already.

        Raises:
            ValueError: If the batches do not match, or the network returns another shape.
        """
        return self.members(input, condition, embedded).mean(0)

    def members(
        self, input: Tensor, condition: Tensor, embedded: Tensor | None = None
    ) -> Tensor:
        """Return f of each member in nats, shape `(member, sample, batch)`.

        The arguments and errors are those of `forward`.
        """
        batches, dim = (1, len(condition)), len(self.loc)
        if input.ndim != 3 or input.shape[1] not in batches or input.shape[2] != dim:
            raise ValueError(
                f"Expected `input` of shape (sample, batch, {dim}), with the batch of "
                f"`condition` or 1, got {tuple(input.shape)} for {len(condition)} "
                "conditions."
            )
        input = input.expand(-1, len(condition), -1)
        inside = self.support.inside(input)
        log_base = self.base.log_prob(inside.flatten(0, 1)).to(input.dtype)
        log_base = log_base.reshape(input.shape[:-1])
        standardized = self.standardize(inside)
        if embedded is None:
            embedded = self.embedding_net(condition)
        r = self.net(standardized, embedded)
        if r.shape[-2:] != log_base.shape or r.ndim > 3:
            raise ValueError(
                f"Expected `net` to return shape {tuple(log_base.shape)}, or that of "
                f"several members, (member, sample, batch), got {tuple(r.shape)}."
            )
        r = r.reshape(-1, *log_base.shape)
        return torch.where(self.support.is_outside(input), -torch.inf, log_base + r)
