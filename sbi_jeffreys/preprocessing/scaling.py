"""Whether an entry varies over the simulations, and by how much."""

import torch
from torch import Tensor, nn

ROUNDING = 1e-6
"""Relative differences that count as rounding: eight units in the last place of single
precision, which is $2^{-23}$ of a number."""


def varies(values: Tensor, size: Tensor | float | None = None) -> Tensor:
    r"""Return whether each entry varies by more than rounding in single precision.

    Networks and models of the pool use no other such rule. With $v_n$ the rows, an entry
    varies if

    .. math:: \max_n |v_n - v_1| > 10^{-6} \, \max_n |v_n|

    The rule is the same for all units, and for double precision, because simulations
    pass through single precision. An entry with NaN does not vary.

    Args:
        values: Shape `(N, ...)`.
        size: What differences are compared with, instead of the largest absolute value
            of an entry. It is needed where `values` are differences of larger numbers.

    Returns:
        Booleans, shape `(...)`.
    """
    if size is None:
        size = values.abs().amax(0)
    return (values - values[0]).abs().amax(0) > ROUNDING * size


def location_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each entry, both of shape `(...)`.

    An entry that does not vary has the scale 1; see `varies`. Numbers that are NaN or
    infinite are left out. An entry without any other has the mean 0 and the scale 1.

    Args:
        values: Shape `(N, ...)`. With a single row all scales are 1.
    """
    loc, scale = _moments(values)
    if bool((loc.isfinite() & scale.isfinite()).all()):
        return loc, scale
    known, double = values.isfinite(), values.double()  # in which no sum overflows
    first = known.to(torch.uint8).argmax(0, keepdim=True)
    filled = torch.where(known, double, double.gather(0, first).nan_to_num(0, 0, 0))
    loc, num = torch.where(known, double, 0.0).sum(0), known.sum(0)
    loc = loc / num.clamp(min=1)
    squares = torch.where(known, (double - loc).square(), 0.0).sum(0)
    scale = (squares / (num - 1).clamp(min=1)).sqrt()
    scale = torch.where(varies(filled), scale, 1.0)
    return loc.to(values), scale.to(values)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations; not finite where a value or a sum is not."""
    if len(values) < 2:
        return values.mean(0), torch.ones_like(values[0])
    changes, differences = varies(values), values - values[0]
    # Squares of tiny or huge numbers are not finite: divide by the largest difference.
    size = torch.where(changes, differences.abs().amax(0), 1.0)
    scale = size * (differences / size).std(0)
    return values.mean(0), torch.where(changes, scale, 1.0)


def as_precise_as(x: Tensor, module: nn.Module) -> nn.Module:
    """Give the real parameters of a network, in place, the precision of x.

    Complex parameters keep theirs. `module.to(x.dtype)` would lose their imaginary part.
    """
    return module.double() if x.dtype == torch.float64 else module.float()
