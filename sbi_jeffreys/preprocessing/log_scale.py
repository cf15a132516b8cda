"""Positive entries of x on their logarithmic scale, where that is less skewed."""

from math import sqrt

import torch
from torch import Tensor, nn


class LogScale(nn.Module):
    r"""Replaces entries of x that are positive in all simulations by their logarithms.

    Concentrations, populations or fluxes are often positive, with errors in proportion to
    them: standardised as they are, a few large ones leave no room for the others. An
    entry is replaced if the skewness $E[(x - \mu)^3] / \sigma^3$ of its logarithm is
    nearer to zero, by more than three standard errors $\sqrt{6 / N}$ of a Gaussian's.
    """

    positive_and_skewed: Tensor

    def __init__(self, x: Tensor) -> None:
        """
        Args:
            x: Simulations, shape `(N, *condition_shape)`.
        """
        super().__init__()
        positive = (x > 0).all(0)
        log_x = torch.where(positive, x, 1.0).log()
        gain = _skewness(x).abs() - _skewness(log_x).abs()
        is_less_skewed = gain > 3 * sqrt(6 / len(x))
        self.register_buffer("positive_and_skewed", positive & is_less_skewed)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, `(batch, *condition_shape)`, with some of its entries' logarithms.

        An observation that is not positive where all simulations are counts as the least
        positive number.
        """
        log_x = x.clamp(min=torch.finfo(x.dtype).tiny).log()
        return torch.where(self.positive_and_skewed, log_x, x)


def _skewness(x: Tensor) -> Tensor:
    """Return the skewness of each entry, zero where it is constant."""
    centred = x.double() - x.double().mean(0)
    size = centred.abs().amax(0)  # x may be in any unit
    z = centred / torch.where(size > 0, size, 1.0)
    return z.pow(3).mean(0) / z.square().mean(0).clamp(min=1e-30).pow(1.5)
