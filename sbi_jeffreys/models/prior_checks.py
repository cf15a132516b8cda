"""Priors that can't serve are refused before any work is done."""

import warnings
from typing import Any

import torch
from sbi.utils import RestrictedPrior
from torch import Tensor
from torch.distributions import Distribution, constraints

from sbi_jeffreys.preprocessing.true_support import TruePrior, is_exact
from sbi_jeffreys.sampling.random_state import seeded

NUM_DRAWS = 200
"""Samples of the prior whose neighbourhoods are looked at."""

NEARBY = 1e-3
"""Distance of the neighbours of a sample, in standard deviations of the prior."""

FEWEST_INSIDE = 0.01
"""Share of the neighbours in which the density has to be positive."""

SURFACES: dict[Any, str] = {
    type(constraints.simplex): "the simplex. Give D - 1 unconstrained parameters: "
    "`TransformedDistribution(prior, biject_to(prior.support).inv)` is their prior, and "
    "`biject_to(prior.support)(samples)` are the samples",
    type(constraints.positive_definite): "the positive definite matrices",
    type(constraints.lower_cholesky): "the lower triangular matrices",
    type(constraints.corr_cholesky): "the Cholesky factors of correlation matrices",
}


def check_can_serve(prior: Distribution | None) -> None:
    """Raise a ValueError if no flow can have the support of a prior.

    Args:
        prior: A distribution over `(D,)`, or None.
    """
    if prior is None:
        return
    _check_is_one(prior)
    support = _declared_support(prior)
    if getattr(support, "is_discrete", False):
        raise ValueError(
            f"Expected a `prior` of continuous parameters, got {_name(prior)}, which has "
            "discrete ones. A flow has a density. Train one `JNPE` for each value of the "
            "discrete parameters, or let the simulator draw them, so that the posterior "
            "averages over them."
        )
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if type(support) in SURFACES:
        raise ValueError(
            f"Expected a `prior` over D parameters that can vary by themselves, got "
            f"{_name(prior)} on {SURFACES[type(support)]}."
        )
    if isinstance(prior, Distribution) and not is_exact(prior):
        _check_neighbourhoods(prior)


def with_one_axis(prior: Distribution | None) -> Distribution | None:
    """Return a distribution over numbers as one over `(1,)`, and others as they are."""
    if not isinstance(prior, Distribution) or isinstance(prior, RestrictedPrior):
        return prior
    if prior.batch_shape + prior.event_shape:
        return prior
    try:
        return prior.expand(torch.Size((1,)))
    except NotImplementedError:  # a class that does not declare its shape
        return prior


def _check_is_one(prior: Any) -> None:
    """Raise a ValueError if `prior` is a batch of distributions, as sbi does."""
    several = getattr(prior, "batch_shape", torch.Size())
    if several.numel() > 1:
        raise ValueError(
            "Expected `prior` to be one distribution over all D parameters, got a batch "
            f"of {several.numel()} (`batch_shape={tuple(several)}`). "
            "`torch.distributions.Independent(prior, 1)` makes one of them."
        )


def _check_neighbourhoods(prior: Distribution) -> None:
    """Raise a ValueError if the density is zero next to nearly all samples."""
    theta = _samples(prior)
    if theta is None:
        return
    scale = theta.std(0).clamp(min=torch.finfo(theta.dtype).tiny)
    with seeded(theta.device, 1):
        steps = NEARBY * scale * torch.randn_like(theta)
    true = TruePrior(prior)
    inside = true.support.check(theta + steps).float().mean()
    if float(inside) < FEWEST_INSIDE:
        raise ValueError(
            f"Expected a `prior` of continuous parameters, got {_name(prior)}, whose "
            f"density is zero next to {1 - float(inside):.0%} of its samples. If some "
            "parameters are discrete, train one `JNPE` for each of their values, or let "
            "the simulator draw them. If they lie on a surface, give parameters that can "
            "vary by themselves. If `log_prob` is not that of `sample`, mend it."
        )


def _samples(prior: Distribution) -> Tensor | None:
    """Return samples, `(N, D)`, or None if the prior gives none."""
    with seeded(torch.device("cpu"), 0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theta = prior.sample(torch.Size((NUM_DRAWS,)))
        except NotImplementedError:
            return None
    return torch.as_tensor(theta) if theta.ndim == 2 else None


def _declared_support(prior: Any) -> Any:
    try:
        return prior.support
    except (AttributeError, NotImplementedError):
        return None


def _name(prior: Any) -> str:
    """Return the type of a prior, with that of what it is made of."""
    base = getattr(prior, "base_dist", None)
    inner = "" if base is None else f"({_name(base)})"
    return f"{type(prior).__name__}{inner}"
