r"""Exponential moving averages that forget their start sooner.

After n updates with the weight $\rho$ of the past, the newest value has the share

    s_n = max(1 − ρ, 9 / (9 + n)) ,     average ← average + s_n (newest − average) .
"""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Number = TypeVar("Number", float, Tensor)


def newest_share(num_updates: Number, past: float) -> Number:
    r"""Return the share of the newest value in a moving average.

    Args:
        num_updates: Number n of updates before this one; a number, or a tensor `()`.
        past: $\rho$, weight of the past once n is large.
    """
    share = 9 / (9 + num_updates)
    if isinstance(share, Tensor):
        return share.clamp(min=1 - past)
    return max(share, 1 - past)


class MovingAverage:
    r"""Exponential moving average of a module's parameters, $\bar w$.

    Torch's `AveragedModel` would wait for the device in each update, because it looks
    whether the update is the first.

    Attributes:
        module: A copy of the module that has the averages as its parameters.
        num_updates: Number of updates so far, shape `()`.
    """

    def __init__(self, module: nn.Module, past: float) -> None:
        r"""
        Args:
            module: The module whose parameters are averaged.
            past: $\rho$, weight of the past.
        """
        self.source, self.past = module, past
        self.module = deepcopy(module).requires_grad_(False).eval()
        first = next(module.parameters())
        self.num_updates = torch.zeros((), device=first.device)
        self._averages: list[Tensor] = list(self.module.parameters())
        self._weights: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Include the present parameters in the averages."""
        share = newest_share(self.num_updates, self.past)
        self.num_updates += 1
        steps = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(self._averages, steps)

    def copy_buffers(self) -> None:
        """Copy the module's buffers, for example those of batch normalisation."""
        buffers = zip(self.module.buffers(), self.source.buffers(), strict=True)
        for average, buffer in buffers:
            average.copy_(buffer)
