"""Where simulations end, and with them what can be learnt from x."""

from torch import Tensor, nn

MARGIN = 0.1
"""Of the range of the simulations' values, that an entry of x may leave it by."""

MAX_STANDARD_DEVIATIONS = 20.0
"""Most that it may be from the mean."""


class TrainingRange(nn.Module):
    """Moves entries of x that are far outside of the simulations to where these end.

    Networks go on in straight lines beyond their training data: of heavy-tailed x a flow
    may make a point, far from the truth. Such an x is better taken for the most extreme
    of the simulations. `agreement` tells that it is unlike them.
    """

    low: Tensor
    high: Tensor

    def __init__(self, x: Tensor) -> None:
        """
        Args:
            x: Standardised simulations, shape `(N, *condition_shape)`.
        """
        super().__init__()
        low, high = x.amin(0), x.amax(0)
        margin, most = MARGIN * (high - low), MAX_STANDARD_DEVIATIONS
        self.register_buffer("low", (low - margin).clamp(-most, most))
        self.register_buffer("high", (high + margin).clamp(-most, most))

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised x, shape `(batch, *condition_shape)`, within the range."""
        return x.clamp(self.low, self.high)
