"""The bounds of a prior's parameters.

They follow from the supports that distributions declare. Of a transformed distribution
torch only knows where the transform leads to, so the bounds of its base go through the
transform: a log-uniform density lies between the exponentials of two bounds, and not on
the whole half line.
"""

from math import inf
from typing import Any, NamedTuple

import torch
from sbi.utils import BoxUniform, MultipleIndependent, RestrictedPrior
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    constraints,
)
from torch.distributions.transforms import (
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    Transform,
)

from sbi_jeffreys._sbi import unrestricted
from sbi_jeffreys.preprocessing.prior_copies import on_cpu


class Bounds(NamedTuple):
    """The bounds of parameters, all of one shape, which may have to be expanded.

    Attributes:
        low: Lower bounds, minus infinity for none.
        high: Upper bounds, infinity for none.
        is_log: Whether an interval of positive numbers came from an exponential, so that
            its logarithm is the natural scale.
    """

    low: Tensor
    high: Tensor
    is_log: Tensor


def bounds_of(prior: Any, dim: int) -> Bounds | None:
    """Return the bounds of parameters, each of shape `(dim,)`.

    Args:
        prior: A distribution.
        dim: Number of parameters.

    Returns:
        Infinite bounds where there are none. None if the support is not known, or lies in
        no product of intervals, half lines and lines.
    """
    try:
        bounds = _of_distribution(prior)
    except (AttributeError, NotImplementedError):  # it declares no support
        return None
    if bounds is None or any(bound.numel() not in (1, dim) for bound in bounds):
        return None
    return Bounds(*(bound.reshape(-1).expand(dim) for bound in bounds))


def _of_distribution(prior: Any) -> Bounds | None:
    """Return bounds whose shape can be expanded to that of a sample, or None.

    A subclass may have another density than its parent, so its own support counts.
    """
    if type(prior) in (Independent, BoxUniform):
        return _of_distribution(prior.base_dist)
    if type(prior) is MultipleIndependent:
        return _of_parts(zip(prior.dists, prior.dims_per_dist, strict=True))
    if type(prior) is TransformedDistribution:
        return _of_transformed(prior)
    if type(prior) is MixtureSameFamily:
        return _of_mixture(prior)
    if isinstance(prior, RestrictedPrior):
        return _of_distribution(unrestricted(prior))
    if isinstance(getattr(prior, "prior", None), Distribution):
        return _of_distribution(prior.prior)  # sbi's wrappers, and our proposals
    return _of_constraint(prior.support)


def _of_parts(parts: Any) -> Bounds | None:
    bounds = [bounds_of(part, dim) for part, dim in parts]
    known = [both for both in bounds if both is not None]
    if len(known) < len(bounds):
        return None
    return Bounds(*map(torch.cat, zip(*known, strict=True)))


def _of_transformed(prior: TransformedDistribution) -> Bounds | None:
    """Return the base's bounds after the transform, or those of all that it leads to."""
    prior = on_cpu(prior)
    bounds = _of_distribution(prior.base_dist)
    transforms = [part for whole in prior.transforms for part in _parts(whole)]
    if bounds is None or any(t.domain.event_dim or not t.bijective for t in transforms):
        return _of_constraint(prior.support)
    shape = prior.base_dist.batch_shape + prior.base_dist.event_shape
    ends = torch.stack([bound.expand(shape) for bound in bounds[:2]])
    for transform in transforms:
        ends = transform(ends)
    if bool(ends.isnan().any()):
        return _of_constraint(prior.support)
    low, high = ends.amin(0), ends.amax(0)
    is_exponential = any(isinstance(step, ExpTransform) for step in transforms)
    return Bounds(low, high, (low > 0) & high.isfinite() & is_exponential)


def _parts(transform: Transform) -> list[Transform]:
    """Return the steps of a transform, for each parameter by itself where they are."""
    if isinstance(transform, ComposeTransform):
        return [part for step in transform.parts for part in _parts(step)]
    if isinstance(transform, IndependentTransform):
        return _parts(transform.base_transform)
    return [transform]


def _of_mixture(prior: MixtureSameFamily) -> Bounds | None:
    """Return the bounds of all components together."""
    components = prior.component_distribution
    bounds = _of_distribution(components)
    if bounds is None:
        return None
    shape = components.batch_shape + components.event_shape
    axis = len(components.batch_shape) - 1
    low, high, is_log = (bound.expand(shape) for bound in bounds)
    return Bounds(low.amin(axis), high.amax(axis), is_log.all(axis))


def _of_constraint(constraint: Any) -> Bounds | None:
    if constraint.is_discrete:
        return None
    if hasattr(constraint, "base_constraint"):  # independent, or a mixture of one family
        return _of_constraint(constraint.base_constraint)
    if isinstance(constraint, constraints.cat):
        bounds = []
        for part, length in zip(constraint.cseq, constraint.lengths, strict=True):
            both = _of_constraint(part)
            if both is None:
                return None
            bounds.append([bound.reshape(-1).expand(length) for bound in both])
        return Bounds(*map(torch.cat, zip(*bounds, strict=True)))
    sides = [getattr(constraint, f"{side}_bound", None) for side in ("lower", "upper")]
    if sides == [None, None] and not isinstance(constraint, type(constraints.real)):
        return None
    low, high = (
        torch.as_tensor(default if bound is None else bound, device="cpu")
        for bound, default in zip(sides, (-inf, inf), strict=True)
    )
    low, high = torch.broadcast_tensors(low, high)
    return Bounds(low, high, torch.zeros_like(low, dtype=torch.bool))
