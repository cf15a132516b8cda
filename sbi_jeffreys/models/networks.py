"""The residual network that flow and energy are made of.

Points come as rows, shape `(S·B, D)`, the S draws of one condition being B rows apart,
with what depends on the B conditions alone, `(B, ...)`, computed once for all draws.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class ContextNet(nn.Module):
    """Residual network from some of a row's parameters and its context to features."""

    def __init__(
        self,
        input_features: int,
        context_features: int,
        hidden_features: int,
        num_blocks: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.from_input = (
            nn.Linear(input_features, hidden_features, bias=False)
            if input_features
            else None
        )
        self.from_context = nn.Linear(context_features, hidden_features)
        self.blocks = nn.ModuleList(
            Residual(hidden_features, activation) for _ in range(num_blocks)
        )
        self.activation = activation

    def forward(self, inputs: Tensor, from_context: Tensor) -> Tensor:
        """Return features of shape `(S·B, hidden)`; `(B, hidden)` without inputs.

        Args:
            inputs: Rows, shape `(S·B, input_features)`.
            from_context: What `self.from_context` gives, shape `(B, hidden)`.
        """
        hidden = from_context
        if self.from_input is not None:
            hidden = torch.addmm(
                per_row(hidden, inputs), inputs, self.from_input.weight.T
            )
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.activation(hidden)


class Residual(nn.Module):
    """What a block of two layers adds to its input, rows of features."""

    def __init__(self, features: int, activation: Activation) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Return features of the shape of `hidden`."""
        return self.second(self.activation(self.first(self.activation(hidden))))


def per_row(context: Tensor, rows: Tensor) -> Tensor:
    """Repeat what belongs to B conditions, shape `(B, ...)`, for S·B rows."""
    times = len(rows) // len(context)
    return context if times == 1 else context.repeat(times, *[1] * (context.ndim - 1))


def zero_init(linear: nn.Linear) -> nn.Linear:
    """Set all parameters to zero, and return the layer."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear
