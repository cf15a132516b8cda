"""Logarithms of positive entries of x, where they are less skewed than the entries."""

from math import sqrt

import torch
from torch import Tensor, nn

from sbi_jeffreys.preprocessing.scaling import varies


class LogScale(nn.Module):
    r"""Replaces skewed entries of x that are always positive by their logarithms.

    Concentrations, populations and fluxes are often positive, and their errors are often
    proportional to their size. After standardisation, a few large values would squeeze
    all others together. The skewness is $E[(x - \mu)^3] / \sigma^3$; for N Gaussian
    numbers its standard error is $\sqrt{6 / N}$. An entry is replaced if it is positive
    in all simulations and taking the logarithm lowers its absolute skewness by more than
    three standard errors.
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
        """Return x, `(batch, *condition_shape)`, with logs in place of skewed entries.

        Where all simulations are positive and an observation is not, the smallest normal
        number takes the place of the observation.
        """
        log_x = x.clamp(min=torch.finfo(x.dtype).tiny).log()
        return torch.where(self.positive_and_skewed, log_x, x)


def _skewness(x: Tensor) -> Tensor:
    """Return the skewness of each entry, zero where it does not vary."""
    centred = x.double() - x.double().mean(0)
    changes = varies(x)
    # Powers of tiny or huge numbers are not finite: divide by the largest.
    z = centred / torch.where(changes, centred.abs().amax(0), 1.0)
    skewness = z.pow(3).mean(0) / z.square().mean(0).clamp(min=1e-30).pow(1.5)
    return torch.where(changes, skewness, 0.0)
