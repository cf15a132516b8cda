"""How unusual an observation is among the simulations: a conformal p-value."""

import torch
from torch import Tensor, nn

from sbi_jeffreys.support import location_and_scale

MAX_SIMULATIONS = 1_000
"""How many simulations are kept to compare with."""

MAX_ENTRIES = 2**22
"""How many numbers they may consist of; but 100 simulations at least."""


class Novelty(nn.Module):
    r"""Compares observations with simulations, by distances to nearest neighbours.

    Let $d_i$ be the distance of simulation i to its k-th nearest neighbour among the
    others and the observation, each entry of x divided by its standard deviation, and
    $d_o$ that of the observation to its own. An observation that is drawn like the
    simulations has its rank anywhere among theirs, so

    .. math:: p = (1 + \#\{i : d_i \ge d_o\}) / (n + 1)

    is at most $\alpha$ with a probability of at most $\alpha$, whatever the simulator
    (full conformal prediction; Vovk, Gammerman & Shafer, 2005).
    """

    loc: Tensor
    scale: Tensor
    simulations: Tensor
    nearer: Tensor
    distance: Tensor

    def __init__(self, x: Tensor, num_neighbors: int = 5) -> None:
        """
        Args:
            x: Simulations, shape `(n, *condition_shape)`, of which evenly spaced ones are
                kept.
            num_neighbors: k, at most the number kept.

        Raises:
            ValueError: If there are fewer than two simulations.
        """
        super().__init__()
        if len(x) < 2:
            raise ValueError(f"Expected at least two simulations `x`, got {len(x)}.")
        most = max(100, min(MAX_SIMULATIONS, MAX_ENTRIES // x[0].numel()))
        rows = torch.linspace(0, len(x) - 1, min(len(x), most)).long()
        x = x[rows.to(x.device)].flatten(1)
        loc, scale = location_and_scale(x)
        k = min(num_neighbors, len(x) - 1)
        simulations = (x - loc) / scale
        among = _distances(simulations, simulations).fill_diagonal_(torch.inf)
        ranked = among.sort(-1).values
        self.k = k
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        self.register_buffer("simulations", simulations)
        self.register_buffer("nearer", ranked[:, k - 2] if k > 1 else 0 * ranked[:, 0])
        self.register_buffer("distance", ranked[:, k - 1])

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return p-values, shape `(batch,)`, at least 1 / (n + 1).

        Args:
            x: Observations, shape `(batch, *condition_shape)`.
        """
        new = _distances((x.flatten(1) - self.loc) / self.scale, self.simulations)
        own = new.kthvalue(self.k, dim=-1, keepdim=True).values
        # With the observation among them, k-th distances shrink to its own, if nearer.
        others = torch.maximum(torch.minimum(new, self.distance), self.nearer)
        return (1 + (others >= own).sum(-1)) / (1 + len(self.simulations))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return Euclidean distances, not by the matrix product that rounds small ones."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
