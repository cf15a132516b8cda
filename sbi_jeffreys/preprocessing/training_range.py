"""Clip x to the range of the simulations. Networks have learnt nothing outside of it."""

import torch
from torch import Tensor, nn

MARGIN = 0.1
"""Distance by which an entry of x may leave the range of the simulations, as a fraction
of that range."""

MAX_STANDARD_DEVIATIONS = 20.0
"""Largest distance of an entry from its mean, in standard deviations."""


class TrainingRange(nn.Module):
    """Clips entries of x to the range of the simulations and a margin around it.

    Networks extrapolate linearly beyond their training data. Given an extreme x, a flow
    may shrink to a point far from the truth. Treating such an x as the most extreme of
    the simulations is safer. `agreement` reports that it is unlike them.
    """

    low: Tensor
    high: Tensor

    def __init__(self, x: Tensor) -> None:
        """
        Args:
            x: Standardised simulations, shape `(N, *condition_shape)`. NaN counts as the
                mean, and remains NaN in `forward`.
        """
        super().__init__()
        x = torch.where(x.isnan(), 0.0, x)
        low, high = x.amin(0), x.amax(0)
        margin, most = MARGIN * (high - low), MAX_STANDARD_DEVIATIONS
        self.register_buffer("low", (low - margin).clamp(-most, most))
        self.register_buffer("high", (high + margin).clamp(-most, most))

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised x, shape `(batch, *condition_shape)`, within the range."""
        return x.clamp(self.low, self.high)
