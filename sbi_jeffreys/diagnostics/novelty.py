"""How unusual an observation is among the simulations: a conformal p-value."""

import torch
from torch import Tensor, nn

from sbi_jeffreys.preprocessing.scaling import location_and_scale

MAX_KEPT_SIMULATIONS = 2_000
"""Most simulations that are kept to compare with."""

MAX_KEPT_ENTRIES = 2**22
"""Most numbers in the simulations that are kept, but at least 200 simulations."""

MIN_RANKED = 100
"""Fewest simulations that are ranked, if there are enough: p may then be below 0.01."""


class Novelty(nn.Module):
    r"""Compares observations with simulations by distances to nearest neighbours.

    One half of the simulations are landmarks. With fewer than 200 simulations, at least
    20 are. Distances are measured in units of their standard deviation, for each entry of
    x by itself. The distance of an observation is that to its k-th nearest landmark. It
    is ranked among the distances of the n other simulations:

    .. math:: p = (1 + \#\{i : d_i \ge d_o\}) / (n + 1).

    For an observation that is drawn like the simulations, all ranks are equally likely.
    So p is at most :math:`\alpha` with a probability of at most :math:`\alpha`, for any
    simulator (split conformal prediction; Vovk, Gammerman & Shafer, 2005). An entry that
    is NaN counts as its mean.
    """

    loc: Tensor
    scale: Tensor
    landmarks: Tensor
    distances: Tensor

    def __init__(self, x: Tensor, num_neighbors: int = 5) -> None:
        """
        Args:
            x: Independent simulations, shape `(N, *condition_shape)`. If there are too
                many, evenly spaced ones are kept.
            num_neighbors: The neighbour k whose distance counts. If there are fewer
                landmarks, it is their number.

        Raises:
            ValueError: If there are fewer than two simulations.
        """
        super().__init__()
        if len(x) < 2:
            raise ValueError(f"Expected at least two simulations `x`, got {len(x)}.")
        most = max(200, min(MAX_KEPT_SIMULATIONS, MAX_KEPT_ENTRIES // x[0].numel()))
        kept = torch.linspace(0, len(x) - 1, min(len(x), most)).long()
        generator = torch.Generator().manual_seed(0)
        kept = kept[torch.randperm(len(kept), generator=generator)]
        num_ranked = min(max(len(kept) // 2, MIN_RANKED), max(1, len(kept) - 20))
        x = x[kept.to(x.device)].flatten(1)
        landmarks = x[num_ranked:]
        loc, scale = location_and_scale(landmarks)
        self.k = min(num_neighbors, len(landmarks))
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        self.register_buffer("landmarks", self._standardize(landmarks))
        self.register_buffer("distances", self._distance(x[:num_ranked]))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return p-values, shape `(batch,)`, at least 1 / (n + 1).

        Args:
            x: Observations, shape `(batch, *condition_shape)`.
        """
        own = self._distance(x.flatten(1)).unsqueeze(1)
        return (1 + (self.distances >= own).sum(-1)) / (1 + len(self.distances))

    def _standardize(self, x: Tensor) -> Tensor:
        z = (x - self.loc) / self.scale
        return torch.where(z.isnan(), 0.0, z)

    def _distance(self, x: Tensor) -> Tensor:
        """Return distances to the k-th nearest landmark, `(batch,)`."""
        to_all = torch.cdist(
            self._standardize(x),
            self.landmarks,
            compute_mode="donot_use_mm_for_euclid_dist",  # equal x are at distance zero
        )
        return to_all.kthvalue(self.k, dim=-1).values
