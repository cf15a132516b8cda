r"""The density of all simulations so far: a mixture of their proposals.

.. math:: \tilde p(\theta) = \sum_r \frac{n_r}{n} \tilde p_r(\theta)

The energy has it as its base while it is trained, $\tilde f = \log \tilde p + r$. The
log-ratio r estimates $\log p(x | \theta)$ up to a function of x, which does not depend on
where parameters were drawn. So $f = \log p + r$ is the posterior's energy afterwards. The
prior, if it is among the proposals, keeps the mixture above $(n_1 / n) p(\theta)$, so
that no importance weight against it is large (a defensive mixture, Hesterberg 1995).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from sbi.utils import RestrictedPrior
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor
from torch.distributions import Distribution


class ProposalMixture(Distribution):
    """A mixture of distributions over the same parameters.

    Attributes:
        prior: The prior, which has the support.
        parts: The distributions, in the order of their rounds.
        shares: Their shares, shape `(rounds,)`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        prior: Distribution,
        parts: Sequence[Distribution],
        counts: Sequence[int],
    ) -> None:
        """
        Args:
            prior: The prior.
            parts: The distributions.
            counts: Simulations of each.
        """
        self.prior, self.parts = prior, list(parts)
        self.shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
        drawn = parts[0].sample(torch.Size((1,)))
        super().__init__(event_shape=drawn.shape[1:], validate_args=False)

    @property
    def support(self) -> Any:
        """The prior's support."""
        return self.prior.support

    @property
    def latest(self) -> Distribution:
        """The proposal of the last round."""
        return self.parts[-1]

    def to(self, device: torch.device | str) -> None:
        """Move the prior and all parts to a device."""
        self.prior = move_distribution_to_device(self.prior, device)
        self.parts = [move_distribution_to_device(part, device) for part in self.parts]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return samples, shape `(*sample_shape, D)`."""
        num = torch.Size(sample_shape).numel()
        chosen = torch.multinomial(self.shares, num, replacement=True)
        counts = chosen.bincount(minlength=len(self.parts)).tolist()
        drawn = [
            part.sample(torch.Size((count,)))
            for part, count in zip(self.parts, counts, strict=True)
            if count
        ]
        mixed = torch.cat(drawn)[torch.randperm(num)]
        return mixed.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities in nats, shape `(...)`, of parameters `(..., D)`."""
        logs = [part.log_prob(value).reshape(value.shape[:-1]) for part in self.parts]
        log_shares = self.shares.log().to(value)
        return (torch.stack(logs, -1) + log_shares).logsumexp(-1)


class TruncatedPrior(Distribution):
    """A `RestrictedPrior` of sbi, with a density that has the prior's gradient."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, restricted: RestrictedPrior, prior: Distribution) -> None:
        """
        Args:
            restricted: The prior, restricted to a region.
            prior: The prior itself.
        """
        self.restricted, self.prior = restricted, prior
        drawn = prior.sample(torch.Size((1,)))
        super().__init__(event_shape=drawn.shape[1:], validate_args=False)

    @property
    def support(self) -> Any:
        """The prior's support."""
        return self.prior.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return samples, shape `(*sample_shape, D)`."""
        return self.restricted.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities in nats, shape `(...)`, of parameters `(..., D)`."""
        rows = value.reshape(-1, value.shape[-1])
        bounded = self.restricted.log_prob(rows.detach(), norm_restricted_prior=False)
        log_share = self.restricted.prior_acceptance().log()
        log_prob = self.prior.log_prob(rows).reshape(-1) - log_share
        inside = bounded.reshape(-1) > -torch.inf
        return torch.where(inside, log_prob, -torch.inf).reshape(value.shape[:-1])
