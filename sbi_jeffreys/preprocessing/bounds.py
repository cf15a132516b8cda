"""The bounds of a prior's parameters, as its support states them."""

from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints


def bounds_of(constraint: Any, dim: int) -> tuple[Tensor, Tensor] | None:
    """Return the lower and the upper bounds of a support, each of shape `(dim,)`.

    Args:
        constraint: The support, a constraint of `torch.distributions`.
        dim: Number of parameters.

    Returns:
        Infinite bounds where there are none. None if the support is not a product of
        intervals, half lines and lines.
    """
    if constraint.is_discrete:
        return None
    if hasattr(constraint, "base_constraint"):  # independent, or a mixture of one family
        return bounds_of(constraint.base_constraint, dim)
    if isinstance(constraint, constraints.cat):
        lows, highs = [], []
        for part, length in zip(constraint.cseq, constraint.lengths, strict=True):
            bounds = bounds_of(part, length)
            if bounds is None:
                return None
            lows.append(bounds[0])
            highs.append(bounds[1])
        return torch.cat(lows), torch.cat(highs)
    sides = [getattr(constraint, f"{side}_bound", None) for side in ("lower", "upper")]
    if sides == [None, None] and not isinstance(constraint, type(constraints.real)):
        return None
    low, high = (
        torch.as_tensor(default if bound is None else bound, device="cpu")
        .reshape(-1)
        .expand(dim)
        for bound, default in zip(sides, (-inf, inf), strict=True)
    )
    return low, high
