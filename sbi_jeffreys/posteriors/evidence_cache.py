"""Estimates of log Z that are remembered for each observation."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sbi_jeffreys.sampling.importance_weights import ImportanceWeights

MAX_CACHED = 10_000
"""Largest number of observations for which log Z is remembered."""


class EvidenceCache:
    """Remembers log Z and its standard error for each observation.

    An estimate is replaced if more samples are asked for than it was made from.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[int, float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def log_z(
        self,
        x: Sequence[Tensor],
        num_samples: int,
        width: int,
        weights_of: Callable[[Tensor], ImportanceWeights],
    ) -> tuple[Tensor, Tensor]:
        """Return log Z and its standard error in nats, each of shape `(len(x),)`.

        Args:
            x: Observations, or sets of observations, each of shape
                `(n, *condition_shape)`.
            num_samples: Number of samples of each estimate.
            width: Most elements of `x` that are estimated together.
            weights_of: Returns the importance weights for elements of `x`, concatenated.
        """
        keys = [part.cpu().numpy().tobytes() for part in x]
        unknown = {
            key: i
            for i, key in enumerate(keys)
            if key not in self._known or self._known[key][0] < num_samples
        }
        new = list(unknown.values())
        for some in (new[i : i + width] for i in range(0, len(new), width)):
            weights = weights_of(torch.cat([x[i] for i in some]))
            estimates = weights.log_z.tolist(), weights.log_z_se.tolist()
            for i, *estimate in zip(some, *estimates, strict=True):
                self._known[keys[i]] = (num_samples, *estimate)
        values = [self._known[key][1:] for key in keys]
        while len(self._known) > MAX_CACHED:
            self._known.popitem(last=False)
        log_z, log_z_se = x[0].new_tensor(values).unbind(1)
        return log_z, log_z_se
