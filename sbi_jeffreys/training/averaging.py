r"""Weights as one vector, and their exponential moving average.

The average forgets its start sooner. After n updates with the weight $\rho$ of the past,
the newest value has the share

    s_n = max(1 − ρ, 9 / (9 + n)) ,     average ← average + s_n (newest − average) .
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

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


class FlatParameters:
    """Parameters in one block of memory, as a single vector.

    An optimiser, the norm of a gradient and a moving average then take one operation for
    all layers. Layers take part of a step's time that does not depend on their sizes.

    Attributes:
        parameters: The parameters. Nothing else may move them while they are gathered.
        vector: All their values, and their gradient after `zero_grad`.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        """
        Args:
            parameters: One or more parameters of the same type, on the same device.
        """
        self.parameters = parameters
        self.vector = nn.Parameter(parameters_to_vector(parameters).detach())

    @torch.no_grad()
    def gather(self) -> None:
        """Move the parameters into the vector, unless they are there already."""
        if self.parameters[0].data_ptr() != self.vector.data_ptr():
            self.vector.copy_(parameters_to_vector(self.parameters))
            vector_to_parameters(self.vector, self.parameters)

    def zero_grad(self) -> None:
        """Set the gradient to zero. The parameters' gradients are parts of it."""
        if self.vector.grad is None:
            self.vector.grad = torch.zeros_like(self.vector)
        else:
            self.vector.grad.zero_()
        first = self.parameters[0].grad
        if first is None or first.data_ptr() != self.vector.grad.data_ptr():
            parts = self.vector.grad.split([p.numel() for p in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def release(self) -> None:
        """Give each parameter memory of its own again, and no gradient."""
        for parameter in self.parameters:
            parameter.data, parameter.grad = parameter.data.clone(), None
        self.vector.grad = None


class MovingAverage:
    r"""Exponential moving average of a module's parameters, $\bar w$.

    Torch's `AveragedModel` would wait for the device in each update, because it looks
    whether the update is the first.

    Attributes:
        module: A copy of the module that has the averages as its parameters.
        vectors: Vectors of averages.
        num_updates: Number of updates so far, shape `()`.
    """

    def __init__(
        self,
        module: nn.Module,
        past: float,
        vectors: Sequence[FlatParameters],
        others: Sequence[nn.Parameter],
    ) -> None:
        r"""
        Args:
            module: The module whose parameters are averaged.
            past: $\rho$, weight of the past.
            vectors: Parameters of the module that are vectors.
            others: Other parameters that are trained.
        """
        self.source, self.past = module, past
        self.module = deepcopy(module).eval()
        copies = dict(zip(module.parameters(), self.module.parameters(), strict=True))
        self.vectors = [
            FlatParameters([copies[p] for p in v.parameters]) for v in vectors
        ]
        self.module.requires_grad_(False)
        self.num_updates = torch.zeros((), device=next(module.parameters()).device)
        self._newest: list[Tensor] = [*(v.vector for v in vectors), *others]
        self._averages: list[Tensor] = [
            *(v.vector for v in self.vectors),
            *(copies[p] for p in others),
        ]
        trained = {*others, *(p for v in vectors for p in v.parameters)}
        self._kept = [(copies[p], p) for p in copies if p not in trained]

    @torch.no_grad()
    def update(self) -> None:
        """Include the present parameters, which are gathered, in the averages."""
        share = newest_share(self.num_updates, self.past)
        self.num_updates += 1
        steps = torch._foreach_sub(self._newest, self._averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(self._averages, steps)

    @torch.no_grad()
    def copy_others(self) -> None:
        """Copy buffers, for example of batch normalisation, and what is not trained."""
        buffers = zip(self.module.buffers(), self.source.buffers(), strict=True)
        for average, value in (*buffers, *self._kept):
            average.copy_(value)
