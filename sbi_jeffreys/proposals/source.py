r"""What the parameters of one call of `append_simulations` were drawn from.

A proposal whose density is cheap and differentiable is used as it is. Of any other, such
as a posterior of networks, only the densities at the parameters are taken: a
`FittedProposal` $\tilde p_r$ stands for it, and the simulations get the weights

.. math:: w = \tilde p_r(\theta) / q_r(\theta) ,

with q_r the true density. Weighted by w, they are a sample of the fitted density, however
well it fits. The mean weight is one, unless q_r is not normalised or has another support.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from scipy.stats import ks_2samp
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import restricts
from sbi_jeffreys.data.arrays import as_tensor
from sbi_jeffreys.models.prior_base import base_density
from sbi_jeffreys.preprocessing.support import support_of
from sbi_jeffreys.proposals.fitted import FittedProposal
from sbi_jeffreys.proposals.forgotten import warn_if_not_from_prior
from sbi_jeffreys.proposals.mixture import ProposalMixture, TruncatedPrior
from sbi_jeffreys.sampling.random_state import seeded

NUM_POINTS = 3_000
"""Samples of a posterior that a density is fitted to."""

FEWEST_TO_CHECK = 20
"""Number of parameters from which their densities are checked."""

FALSE_ALARMS = 1e-6
"""P-value below which parameters are taken not to be samples of their proposal."""

LARGEST_WEIGHT = 10.0
"""Bound on the weights of simulations."""

TOLERANCE, STANDARD_ERRORS = math.log(2), 6.0
"""A density is taken to be wrong where the fitted one is twice as high, or half as high,
and this number of standard errors more."""


class Source(NamedTuple):
    """What the parameters of some simulations were drawn from.

    Attributes:
        density: The density that stands for the proposal; None for the prior.
        weights: Weights of the simulations, shape `(N,)`; None if all are one.
        default_x: The observation that the proposal is about, or None.
        is_truncated: Whether the proposal is the prior, restricted to a region.
    """

    density: Distribution | None = None
    weights: Tensor | None = None
    default_x: Tensor | None = None
    is_truncated: bool = False


def mixture_of(
    sources: Sequence[tuple[Source, int]], prior: Distribution | None
) -> ProposalMixture | None:
    """Return the density of all parameters, or None where the prior stands for it.

    It does where all parameters are from the prior, truncated or not. Where it is
    truncated, posteriors near the observation are the same (TSNPE, Deistler et al. 2022,
    arXiv:2210.04815).

    Args:
        sources: What parameters were drawn from, and their numbers.
        prior: The prior, or None.
    """
    if prior is None or all(s.density is None or s.is_truncated for s, _ in sources):
        return None
    counts: dict[int, int] = {id(prior): 0}
    parts: dict[int, Distribution] = {id(prior): prior}
    for source, num in sources:
        part = source.density or prior
        parts.pop(id(part), None)  # the last round's comes last
        parts[id(part)] = part
        counts[id(part)] = counts.get(id(part), 0) + num
    used = [name for name in parts if counts[name]]
    return ProposalMixture(prior, [parts[n] for n in used], [counts[n] for n in used])


def describe(proposal: Any, prior: Distribution | None, theta: Tensor) -> Source:
    """Return what parameters were drawn from.

    Args:
        proposal: None or the prior; a `RestrictedPrior` made from the prior; a posterior,
            of sbi or of this package, with a default x; a distribution with `sample` and
            `log_prob`; or the log densities of `theta` in nats, `(N,)`,
            as a tensor or an array.
        prior: The prior, or None.
        theta: The parameters, shape `(N, D)`, inside the prior's support.

    Raises:
        TypeError: If `proposal` is none of these.
        ValueError: If there is no prior, or if the density of the proposal is not finite,
            not normalised, or not that of the parameters.
    """
    if isinstance(proposal, np.ndarray):
        proposal = as_tensor("proposal", proposal)
    if proposal is None or proposal is prior:
        if proposal is None and prior is not None:
            warn_if_not_from_prior(theta, prior)
        return Source()
    if prior is not None and restricts(proposal, prior):
        return Source(TruncatedPrior(proposal, prior), is_truncated=True)
    if prior is None:
        raise ValueError(
            "Expected a `prior` of the trainer for simulations from a `proposal`, got "
            "None. The prior is a part of the density of all simulations."
        )
    check_prior(prior)
    log_prob = _log_densities(proposal, theta)
    default_x = getattr(proposal, "default_x", None)
    if isinstance(proposal, FittedProposal):
        return Source(proposal, default_x=default_x)
    if isinstance(proposal, NeuralPosterior):
        points = proposal.sample((NUM_POINTS,), show_progress_bars=False)
    else:
        points = theta if isinstance(proposal, Tensor) else proposal.sample((NUM_POINTS,))
    points = torch.as_tensor(points).detach().to(theta).reshape(-1, theta.shape[1])
    if len(points) <= 2 * theta.shape[1]:
        raise ValueError(
            f"Expected more than {2 * theta.shape[1]} `theta` where `proposal` has their "
            f"log densities alone, got {len(points)}."
        )
    if not isinstance(proposal, Tensor):
        _check_origin(log_prob, _log_densities(proposal, points))
    fitted = FittedProposal.fit(points, prior)
    log_ratios = fitted.log_prob(theta) - log_prob
    if len(theta) >= FEWEST_TO_CHECK:
        _check_ratios(log_ratios)
    if isinstance(proposal, Distribution) and _is_differentiable(proposal, theta):
        return Source(proposal, default_x=default_x)
    weights = log_ratios.exp().clamp(max=LARGEST_WEIGHT)
    return Source(fitted, weights / weights.mean(), default_x)


def check_prior(prior: Distribution) -> None:
    """Raise a ValueError if a prior's density can't be part of a mixture.

    The energy's base would then be a Gaussian in place of the mixture.
    """
    with seeded(torch.device("cpu"), 0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theta = prior.sample(torch.Size((100,)))
        support = support_of(prior, theta)
        base = base_density(prior, support.inside(theta), support)
    if type(base) is not type(prior):
        raise ValueError(
            "Expected a `prior` whose log density is differentiable by torch and finite "
            f"in its whole `support`, for rounds with a `proposal`, got "
            f"{type(prior).__name__}."
        )


def _log_densities(proposal: Any, theta: Tensor) -> Tensor:
    """Return the proposal's log densities of the parameters, shape `(N,)`, or raise."""
    if isinstance(proposal, Tensor):
        log_prob = proposal.detach().to(theta)
        if log_prob.shape != theta.shape[:1]:
            raise ValueError(
                "Expected `proposal` to have a log density for each of `theta`, shape "
                f"{tuple(theta.shape[:1])}, got {tuple(log_prob.shape)}."
            )
    elif hasattr(proposal, "log_prob") and hasattr(proposal, "sample"):
        try:
            log_prob = proposal.log_prob(theta)
        except ValueError as error:  # a distribution that checks its support
            raise ValueError(
                "Expected `proposal` to have a density at all `theta`, but its "
                f"`log_prob` raises: {error}"
            ) from error
        log_prob = torch.as_tensor(log_prob).detach().to(theta).reshape(-1)
    else:
        raise TypeError(
            "Expected `proposal` to be the prior, a `RestrictedPrior` made from it, a "
            "posterior, a distribution with `sample` and `log_prob`, or log densities "
            f"of shape (N,), got a {type(proposal).__name__}."
        )
    bad = int((~log_prob.isfinite()).sum()) if len(log_prob) == len(theta) else None
    if bad is None:
        raise ValueError(
            f"Expected `proposal.log_prob(theta)` of shape ({len(theta)},), got "
            f"{len(log_prob)} numbers."
        )
    if bad:
        raise ValueError(
            f"Expected `proposal` to have a density at all `theta`, but it is zero or "
            f"not finite at {bad} of {len(theta)}. Pass what they were drawn from."
        )
    return log_prob


def _check_origin(log_prob: Tensor, of_samples: Tensor) -> None:
    """Raise a ValueError if parameters have not the log densities of samples.

    Args:
        log_prob: The proposal's log densities of the parameters, shape `(N,)`.
        of_samples: Those of its own samples, shape `(M,)`.
    """
    test = ks_2samp(log_prob.cpu().numpy(), of_samples.cpu().numpy(), method="asymp")
    if len(log_prob) >= FEWEST_TO_CHECK and test.pvalue < FALSE_ALARMS:
        raise ValueError(
            "Expected `theta` that were drawn from `proposal`, but they come from "
            f"elsewhere: their log densities are not those of its samples (p = "
            f"{test.pvalue:.1g})."
        )


def _check_ratios(log_ratios: Tensor) -> None:
    """Raise a ValueError if fitted over true densities can't be those of a sample of q.

    The mean of the ratio is one, and that of its logarithm is at most zero.

    Args:
        log_ratios: Log density that was fitted minus that of the proposal, `(N,)`.
    """
    ratios = log_ratios.double().exp()
    (mean, error), (log_mean, log_error) = (
        (float(values.mean()), float(values.std(correction=0) / len(values) ** 0.5))
        for values in (ratios, log_ratios.double())
    )
    is_low = 1 - mean > 0.5 + STANDARD_ERRORS * error
    is_high = log_mean > TOLERANCE + STANDARD_ERRORS * log_error
    if is_low or is_high:
        raise ValueError(
            "Expected `proposal` to be the normalised density that `theta` were drawn "
            "from, but a density fitted to its samples is "
            f"{math.exp(log_mean):.3g} times as high at `theta` (geometric mean). Its "
            "`log_prob` is not normalised, or `theta` come from elsewhere."
        )


def _is_differentiable(proposal: Distribution, theta: Tensor) -> bool:
    """Return whether the log density has finite gradients, or is flat."""
    points = theta[:100].clone().requires_grad_()
    try:
        log_prob = proposal.log_prob(points).reshape(-1)
    except (RuntimeError, TypeError, ValueError):  # numpy refuses such tensors
        return False
    if not log_prob.requires_grad:
        return bool((log_prob == log_prob[0]).all())
    (slope,) = torch.autograd.grad(log_prob.sum(), points)
    return bool(slope.isfinite().all())
