"""The base density of the energy: the prior, or a Gaussian that replaces it."""

import warnings
from typing import Any

import torch
from sbi.utils.sbiutils import ImproperEmpirical
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from sbi_jeffreys.preprocessing.prior_copies import unvalidated
from sbi_jeffreys.preprocessing.scaling import location_and_scale
from sbi_jeffreys.preprocessing.support import Support
from sbi_jeffreys.preprocessing.true_support import evaluated_anywhere


def base_density(prior: Any, theta: Tensor, support: Support) -> Distribution:
    """Return the prior if its density can be used, or else a Gaussian fitted to `theta`.

    The reverse KL divergence needs the log density and its gradient wherever the flow may
    draw. A prior is replaced by the Gaussian if it is improper or empirical, if its
    density is computed outside of torch, or if its density is zero somewhere inside its
    declared support. The last two cases give a warning.

    Args:
        prior: A distribution over `(D,)`, or None.
        theta: Parameters inside the prior's support, shape `(N, D)`.
        support: The map from `theta` to unconstrained space.
    """
    if prior is None or isinstance(prior, ImproperEmpirical) or not support.is_exact:
        return _gaussian(theta)
    prior = unvalidated(prior)
    points = theta.detach().clone().requires_grad_()
    try:
        log_prob = prior.log_prob(points)
    except (RuntimeError, TypeError):  # numpy refuses tensors that need gradients
        log_prob = prior.log_prob(theta).detach()
    flat = bool((log_prob == log_prob[0]).all())
    axes = torch.eye(theta.shape[-1]).to(theta)
    far = torch.cat([step * axes for step in (-4.0, -2.0, 2.0, 4.0)])
    mixed = torch.stack([column.roll(d) for d, column in enumerate(theta.T)], -1)
    elsewhere = torch.cat([support.inverse(far)[0], mixed])
    everywhere = bool(prior.log_prob(elsewhere).isfinite().all())
    if everywhere and (log_prob.requires_grad or flat):
        return prior
    lack = "not differentiable by torch" if everywhere else "zero inside of its `support`"
    warnings.warn(
        f"The density of the prior ({type(prior).__name__}) is {lack}. The energy starts "
        "from a Gaussian instead. Samples where the density is zero are rejected.",
        stacklevel=2,
    )
    return _gaussian(theta)


def log_prior_floor(prior: Any, base: Distribution, theta: Tensor) -> float:
    """Return a lower bound on the prior's log density where it is divided out, in nats.

    An energy whose base is the prior contains the prior everywhere, so the bound is minus
    infinity. Another energy has learned the prior only where it was trained. Divided by a
    density far lower than at any simulation, it would have its mode there. So the bound
    is the lowest log density of the prior at a simulation.

    Args:
        prior: A distribution over `(D,)`, or None.
        base: The base of the energy.
        theta: Parameters trained on, shape `(N, D)`.
    """
    if prior is None:
        return -torch.inf
    densities = (evaluated_anywhere(prior), base)
    log_prior, log_base = (p.log_prob(theta).reshape(-1) for p in densities)
    return -torch.inf if torch.equal(log_prior, log_base) else float(log_prior.min())


def _gaussian(theta: Tensor) -> Distribution:
    loc, scale = location_and_scale(theta)
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
