"""The residual network that the flow and the energy are made of.

Points are rows, shape `(S·B, D)`, for S draws of each of B conditions. Row `s·B + b` is
draw s of condition b. What depends on the conditions alone has the shape `(B, ...)`, and
is computed once for all draws.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class ContextNet(nn.Module):
    """Residual network that maps parameters and a context to features."""

    def __init__(
        self,
        input_features: int,
        context_features: int,
        hidden_features: int,
        num_blocks: int,
        activation: Activation,
    ) -> None:
        """
        Args:
            input_features: Number of parameters; with zero, only the context is used.
            context_features: Number of features of a condition.
            hidden_features: Number of features that are returned.
            num_blocks: Number of residual blocks.
            activation: The nonlinearity.
        """
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
        """Return features, shape `(S·B, hidden)`, or `(B, hidden)` without inputs.

        Args:
            inputs: Rows, shape `(S·B, input_features)`.
            from_context: The result of `self.from_context`, shape `(B, hidden)`.
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
    """The part that a block of two layers adds to its input."""

    def __init__(self, features: int, activation: Activation) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Return rows of features, of the same shape as `hidden`."""
        return self.second(self.activation(self.first(self.activation(hidden))))


def per_row(context: Tensor, rows: Tensor) -> Tensor:
    """Repeat values of B conditions, shape `(B, ...)`, for S·B rows."""
    times = len(rows) // len(context)
    return context if times == 1 else context.repeat(times, *[1] * (context.ndim - 1))


def zero_init(linear: nn.Linear) -> nn.Linear:
    """Set all parameters of a layer to zero, and return it."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear
