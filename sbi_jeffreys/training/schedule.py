r"""Learning rates that rise in a few epochs and fall along a cosine, again and again.

In cycle c, of $T_c = T_1 2^{c - 1}$ epochs, the factor of the learning rates is

    min(1, (t + 1) / warm-up) · (1 + cos(π t / T_c)) / 2 ,     t = 0, ..., T_c − 1 .

Each cycle ends with a good model, and a training can stop there (warm restarts,
Loshchilov & Hutter 2017, arXiv:1608.03983). The factors depend on the epoch alone, so a
training that is resumed continues exactly.
"""

from dataclasses import dataclass
from math import cos, pi, sqrt

WARM_UP = 5
"""Epochs in which the learning rates rise."""

MOST_EPOCHS, LEAST_EPOCHS = 50, 10
"""Bounds on the epochs of the first cycle."""


def warm_cosine(position: int, length: int, warm_up: int) -> float:
    """Return the factor of the learning rates at a position of a cycle.

    Args:
        position: Number of epochs, or steps, of the cycle so far.
        length: Their number in the whole cycle.
        warm_up: Their number in which the factor rises.
    """
    return min(1.0, (position + 1) / warm_up) * (1 + cos(pi * position / length)) / 2


@dataclass(frozen=True)
class Cycles:
    """Cycles of epochs, each twice as long as the one before.

    Attributes:
        first: Epochs of the first cycle.
    """

    first: int

    @classmethod
    def of(cls, num_simulations: int) -> "Cycles":
        """Return cycles that see more of few simulations: 25 epochs of 1,000."""
        wanted = round(25 * sqrt(1000 / max(1, num_simulations)))
        return cls(min(MOST_EPOCHS, max(LEAST_EPOCHS, wanted)))

    def factor(self, epoch: int) -> float:
        """Return the factor of the learning rates in an epoch, counted from zero."""
        start, length = self._cycle(epoch)
        return warm_cosine(epoch - start, length, WARM_UP)

    def end(self, epoch: int) -> int:
        """Return the number of epochs at the end of the cycle of `epoch`."""
        return sum(self._cycle(epoch))

    def ends(self, num: int) -> int:
        """Return the number of epochs at the end of `num` cycles."""
        return self.first * (2**num - 1)

    def _cycle(self, epoch: int) -> tuple[int, int]:
        start, length = 0, self.first
        while epoch >= start + length:
            start, length = start + length, 2 * length
        return start, length
