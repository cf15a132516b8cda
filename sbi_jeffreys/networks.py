"""The residual network that flow and energy are made of.

Points come as rows, shape `(S·B, D)`, the S draws of one condition being B rows apart,
with the context of the B conditions, `(B, C)`.
"""

from torch import Tensor, nn
from torch.nn.functional import silu


class ContextNet(nn.Module):
    """Residual network from some of a row's parameters and its context to features."""

    def __init__(
        self,
        input_features: int,
        context_features: int,
        hidden_features: int,
        num_blocks: int,
    ) -> None:
        super().__init__()
        self.from_input = (
            nn.Linear(input_features, hidden_features, bias=False)
            if input_features
            else None
        )
        self.from_context = nn.Linear(context_features, hidden_features)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
            )
            for _ in range(num_blocks)
        )

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        """Return features of shape `(S·B, hidden)`; `(B, hidden)` without inputs."""
        hidden = self.from_context(context)
        if self.from_input is not None:
            hidden = per_row(hidden, inputs) + self.from_input(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return silu(hidden)


def per_row(context: Tensor, rows: Tensor) -> Tensor:
    """Repeat what belongs to B conditions, shape `(B, ...)`, for S·B rows."""
    times = len(rows) // len(context)
    return context if times == 1 else context.repeat(times, *[1] * (context.ndim - 1))


def zero_init(linear: nn.Linear) -> nn.Linear:
    """Set all parameters to zero, and return the layer."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear
