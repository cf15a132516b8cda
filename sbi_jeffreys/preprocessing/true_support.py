"""Where the density of a prior is positive, which may be less than it declares.

A distribution declares a `support`. For many it is too large: torch takes a log-uniform
density for positive on a half line, a class of one's own often declares a box or nothing
at all, and a `RestrictedPrior` has the support of what it restricts. sbi asks the support
alone whether to keep a sample. So posteriors get such a prior with its true support.
"""

from typing import Any, ClassVar

import torch
from sbi.utils import BoxUniform, MultipleIndependent, RestrictedPrior
from sbi.utils.sbiutils import ImproperEmpirical
from sbi.utils.user_input_checks_utils import (
    OneDimPriorWrapper,
    PytorchReturnTypeWrapper,
)
from torch import Tensor, distributions
from torch.distributions import Distribution, Independent, biject_to, constraints

from sbi_jeffreys.preprocessing.bounds import bounds_of
from sbi_jeffreys.preprocessing.prior_copies import moved, unvalidated

EXACT = {
    distributions.Beta,
    distributions.Cauchy,
    distributions.Chi2,
    distributions.Exponential,
    distributions.Gamma,
    distributions.Gumbel,
    distributions.HalfCauchy,
    distributions.HalfNormal,
    distributions.Laplace,
    distributions.LogNormal,
    distributions.LowRankMultivariateNormal,
    distributions.MultivariateNormal,
    distributions.Normal,
    distributions.StudentT,
    distributions.Uniform,
    ImproperEmpirical,
}
"""Distributions whose density is positive in the whole of the support they declare."""


def is_exact(prior: Any) -> bool:
    """Return whether the density is known to be positive in the whole declared support.

    Only types that are known count, and no subclass of them.
    """
    if type(prior) in (Independent, BoxUniform):
        return is_exact(prior.base_dist)
    if type(prior) in (PytorchReturnTypeWrapper, OneDimPriorWrapper):
        return is_exact(prior.prior)
    if type(prior) is MultipleIndependent:
        return all(map(is_exact, prior.dists))
    return type(prior) in EXACT


def with_true_support(prior: Distribution) -> Distribution:
    """Return a prior whose `support` is where its density is positive.

    This is the prior itself where it is known to declare just that.
    """
    if is_exact(prior) or isinstance(prior, TruePrior):
        return prior
    return TruePrior(prior)


def evaluated_anywhere(prior: Any) -> Any:
    """Return a prior whose density between its bounds can be asked for without errors."""
    return prior if prior is None or is_exact(prior) else unvalidated(prior)


class TrueSupport(constraints.Constraint):
    """The part of a product of intervals in which a density is positive.

    Attributes:
        base_constraint: The intervals, from which sbi makes its map to unconstrained
            space.
    """

    event_dim = 1
    low: Tensor
    high: Tensor

    def __init__(self, prior: Distribution, dim: int) -> None:
        """
        Args:
            prior: A distribution that does not validate its arguments.
            dim: Number of parameters.
        """
        self.prior = prior
        bounds = bounds_of(prior, dim)
        unbounded = torch.tensor([-torch.inf]), torch.tensor([torch.inf])
        self.low, self.high = unbounded if bounds is None else bounds[:2]
        self.base_constraint = _intervals(self.low, self.high)
        self.declared: Any = None
        if bounds is None:
            try:
                self.declared = prior.support
            except (AttributeError, NotImplementedError):
                self.declared = None

    @torch.no_grad()
    def check(self, value: Tensor) -> Tensor:
        """Return where the density is positive, shape `(...)`, for values `(..., D)`."""
        rows = value.detach().reshape(-1, value.shape[-1])
        low, high = self.low.to(rows), self.high.to(rows)
        inside = ((rows >= low) & (rows <= high)).all(-1)
        if self.declared is not None:
            inside &= self.declared.check(rows).reshape(len(rows), -1).all(-1)
        if bool(inside.any()):
            log_prob = unnormalised_log_prob(self.prior, rows[inside])
            inside[inside.clone()] = log_prob > -torch.inf
        return inside.reshape(value.shape[:-1])


@biject_to.register(TrueSupport)
def _unconstrained(support: TrueSupport) -> Any:
    return biject_to(constraints.independent(support.base_constraint, 1))


class TruePrior(Distribution):
    """A prior, with the support in which its density is positive.

    Attributes:
        prior: A copy of the prior that does not validate its arguments.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, prior: Distribution) -> None:
        """
        Args:
            prior: A distribution over `(D,)`.
        """
        self.prior = unvalidated(prior)
        shape = torch.Size((_dimension(self.prior),))
        super().__init__(event_shape=shape, validate_args=False)
        self._support = TrueSupport(self.prior, shape.numel())

    @property
    def support(self) -> TrueSupport:
        """Where the density is positive."""
        return self._support

    @property
    def mean(self) -> Tensor:
        """The prior's mean."""
        return self.prior.mean

    @property
    def variance(self) -> Tensor:
        """The prior's variance."""
        return self.prior.variance

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return samples, shape `(*sample_shape, D)`."""
        return self.prior.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the prior's log densities in nats, shape `(...)`."""
        log_prob = self.prior.log_prob(value).reshape(value.shape[:-1])
        return torch.where(self._support.check(value), log_prob, -torch.inf)

    def to(self, device: torch.device | str) -> None:
        """Move the prior."""
        self.prior = moved(self.prior, device)
        self._support = TrueSupport(self.prior, self.event_shape.numel())


def _dimension(prior: Distribution) -> int:
    """Return the number of parameters. A `RestrictedPrior` has it in its samples only."""
    shape = (*prior.batch_shape, *prior.event_shape)
    if not shape:
        with torch.random.fork_rng(devices=[]):
            shape = prior.sample(torch.Size((1,))).shape
    return shape[-1]


def unnormalised_log_prob(prior: Any, theta: Tensor) -> Tensor:
    """Return log densities up to a constant, `(N,)`, of parameters `(N, D)`.

    Raises:
        ValueError: If the prior returns another number of them.
    """
    options = {}
    if isinstance(prior, RestrictedPrior):  # it would estimate the constant by sampling
        options["norm_restricted_prior"] = False
    log_prob = torch.as_tensor(prior.log_prob(theta, **options))
    if log_prob.numel() != len(theta):
        raise ValueError(
            f"Expected `prior.log_prob` of {len(theta)} parameters to return shape "
            f"({len(theta)},), got {tuple(log_prob.shape)}."
        )
    return log_prob.reshape(len(theta))


def _intervals(low: Tensor, high: Tensor) -> Any:
    """Return the constraint of parameters to bounds of shape `(D,)`, one by one."""
    has_low, has_high = low.isfinite(), high.isfinite()
    if not bool((has_low | has_high).any()):
        return constraints.real
    if bool((has_low & has_high).all()):
        return constraints.interval(low, high)
    if bool(has_low.all()) and not bool(has_high.any()):
        return constraints.greater_than(low)
    if bool(has_high.all()) and not bool(has_low.any()):
        return constraints.less_than(high)
    each = zip(low.split(1), high.split(1), strict=True)
    return constraints.cat([_intervals(*ends) for ends in each], dim=-1)
