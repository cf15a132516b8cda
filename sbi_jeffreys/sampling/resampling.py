r"""Importance resampling without replacement: choose draws in proportion to weights.

Draw k is included with probability

.. math:: \pi_k = \min(1, c w_k), \qquad \sum_k \pi_k = n,

where the second equation determines c and n is how many are chosen. This is exact
importance resampling while no weight exceeds 1/c. Above 1/c the excess is spread over the
other draws. That is a bias towards the flow, which vanishes as draws are added. One
uniform random number for all draws (systematic sampling) keeps the noise low.
"""

import torch
from torch import Tensor


def resample(log_weights: Tensor, num: int, replacement: bool = False) -> Tensor:
    """Choose draws in proportion to their weights, by default none of them twice.

    Args:
        log_weights: Of independent draws, shape `(draws, batch)`.
        num: How many to choose in each column.
        replacement: Whether a draw may be chosen several times. A draw is then always
            chosen in proportion to its weight. Columns with fewer than `num` positive
            weights are treated in this way, too.

    Returns:
        Indices of draws, shape `(num, batch)`, in random order.
    """
    weights = log_weights.double().softmax(0)
    expected = num * weights
    if not replacement and 0 < num <= len(weights):
        enough = (weights > 0).sum(0) >= num
        expected = torch.where(enough, _inclusion_probabilities(weights, num), expected)
    ends = expected.cumsum(0).T.contiguous()
    ends *= num / ends[:, -1:]
    start = torch.rand_like(ends[:, :1])
    steps = start + torch.arange(num, device=ends.device)
    chosen = torch.searchsorted(ends, steps, right=True).clamp(max=len(weights) - 1)
    # Systematic sampling keeps the order of the draws. Shuffle what was chosen.
    return chosen.take_along_dim(torch.rand_like(steps).argsort(-1), -1).T


def displaced_share(log_weights: Tensor, num: int) -> Tensor:
    r"""Return the share of the weight that `resample` moves to other draws, `(batch,)`.

    Without replacement no draw can have more than a share 1/num of what is chosen:

    .. math:: \sum_k \max(0, w_k / \sum_j w_j - 1 / num).

    This is the total-variation distance between the draws' shares among the chosen and
    their shares of the weight.

    Args:
        log_weights: Shape `(draws, batch)`.
        num: How many are chosen.
    """
    shares = log_weights.double().softmax(0)
    return (shares - 1 / max(num, 1)).clamp(min=0).sum(0)


def _inclusion_probabilities(weights: Tensor, num: int) -> Tensor:
    r"""Return :math:`\min(1, c w_k)` that sum to `num`, shape `(draws, batch)`."""
    ranked = weights.sort(0, descending=True).values
    rest = ranked.flip(0).cumsum(0).flip(0)[:num]  # from the k-th largest downwards
    left = torch.arange(num, 0, -1, device=weights.device).unsqueeze(1)
    certain = (left * ranked[:num] > rest).long().cumprod(0).sum(0, keepdim=True)
    certain = certain.clamp(max=num - 1)
    shares = weights / rest.gather(0, certain)  # divide first: 1 / rest may overflow
    return ((num - certain) * shares).clamp(max=1)
