r"""From draws of the flow to draws of the energy model: importance weights, resampling.

With $\theta_k \sim p$ and $w_k = e^{f(\theta_k)} / p(\theta_k)$,

    Z ≈ 1/N Σ w_k,        ESS = (Σ w_k)² / Σ w_k²,        SE(log Z) ≈ √(1/ESS − 1/N),

with the largest weights smoothed by a generalized Pareto distribution, whose shape k̂
tells whether they can be trusted (Vehtari et al., JMLR 25(72), 2024).
"""

from collections.abc import Callable
from math import ceil, log
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_jeffreys.sampling.psis import pareto_smoothed

MAX_PARETO_K = 0.7
"""Above it importance sampling needs more draws than anyone has (Vehtari et al.)."""

MIN_DRAWS_TO_JUDGE = 1_000
"""Draws that k̂ is worth a warning from, while sampling."""


class ImportanceWeights(NamedTuple):
    """Draws from the flow, and what makes of them draws from the energy model.

    Attributes:
        theta: Draws, shape `(num, batch, D)`.
        log_weights: Smoothed, and normalised so that weights sum to one, `(num, batch)`.
        pareto_k: Shape of the weights' tail, `(batch,)`; unreliable above 0.7. Minus
            infinity if there is no tail, the weights being equal.
        ess: Effective number of samples, between 1 and num, `(batch,)`.
        log_z: Estimate of log Z in nats, `(batch,)`.
        log_z_se: Its standard error.
    """

    theta: Tensor
    log_weights: Tensor
    pareto_k: Tensor
    ess: Tensor
    log_z: Tensor
    log_z_se: Tensor


def smooth(theta: Tensor, log_weights: Tensor) -> ImportanceWeights:
    """Smooth, normalise and judge importance weights.

    Args:
        theta: Draws, shape `(num, batch, D)`.
        log_weights: Their log weights, shape `(num, batch)`; minus infinity for none.

    Raises:
        RuntimeError: If all draws for some observation have weight zero.
    """
    num = len(log_weights)
    raw = log_weights.double()
    if num and bool(raw.amax(0).isneginf().any()):
        raise RuntimeError(
            f"None of {num} draws of the flow is inside of the prior's support for at "
            "least one observation: the flow can't be corrected there."
        )
    smoothed, pareto_k = pareto_smoothed(raw.T.cpu().numpy())
    log_shares = torch.from_numpy(smoothed).to(raw.device).T
    # Most weights are not in the tail: they tell what was subtracted.
    offset = (raw - log_shares).nanmedian(0).values
    ess = 1 / (2 * log_shares).exp().sum(0)
    return ImportanceWeights(
        theta,
        log_shares.to(log_weights),
        torch.from_numpy(pareto_k).to(log_weights),
        ess.to(log_weights),
        (offset - log(num)).to(log_weights),
        (1 / ess - 1 / num).clamp(min=0).sqrt().to(log_weights),
    )


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Return the ESS, `(batch,)`, of log weights `(num, batch)`; 0 if all are -inf."""
    shares = log_weights.double().softmax(0)
    return (1 / shares.square().sum(0)).nan_to_num(0.0)


def resample(log_weights: Tensor, num: int, replacement: bool = False) -> Tensor:
    r"""Choose draws in proportion to their weights, by default none twice.

    Draw k is included with probability $\pi_k = \min(1, c w_k)$, c such that they sum to
    `num`: exact importance resampling while no weight exceeds $1/c$; above, the excess is
    spread over the others, a bias towards the flow that vanishes as draws are added. One
    uniform number for all draws (systematic sampling) keeps the noise low.

    Args:
        log_weights: Of independent draws, shape `(draws, batch)`.
        num: How many to choose for each column.
        replacement: Whether to choose in proportion to the weights whatever they are,
            the same draw several times if need be. So are columns of which fewer than
            `num` draws have any weight.

    Returns:
        Indices of draws, shape `(num, batch)`, in random order.
    """
    weights = log_weights.double().softmax(0)
    expected = num * weights
    if not replacement and 0 < num <= len(weights):
        enough = (weights > 0).sum(0) >= num
        expected = torch.where(enough, _capped(weights, num), expected)
    ends = expected.cumsum(0).T.contiguous()
    ends *= num / ends[:, -1:]
    start = torch.rand_like(ends[:, :1])
    steps = start + torch.arange(num, device=ends.device)
    chosen = torch.searchsorted(ends, steps, right=True).clamp(max=len(weights) - 1)
    # The first of them are not like the others: none is before them.
    return chosen.take_along_dim(torch.rand_like(steps).argsort(-1), -1).T


def displaced(log_weights: Tensor, num: int) -> Tensor:
    r"""Return the share of the weight that `resample` moves to other draws, `(batch,)`.

    That is $\sum_k \max(0, w_k / \sum_j w_j - 1 / num)$: the distance in total variation
    of the draws' shares among the chosen from their shares of the weight.

    Args:
        log_weights: Shape `(draws, batch)`.
        num: How many are chosen.
    """
    shares = log_weights.double().softmax(0)
    return (shares - 1 / max(num, 1)).clamp(min=0).sum(0)


def _capped(weights: Tensor, num: int) -> Tensor:
    r"""Return $\pi_k = \min(1, c w_k)$ that sum to `num`, shape `(draws, batch)`."""
    ranked = weights.sort(0, descending=True).values
    rest = ranked.flip(0).cumsum(0).flip(0)[:num]  # from the k-th largest downwards
    left = torch.arange(num, 0, -1, device=weights.device).unsqueeze(1)
    certain = (left * ranked[:num] > rest).long().cumprod(0).sum(0, keepdim=True)
    certain = certain.clamp(max=num - 1)
    shares = weights / rest.gather(0, certain)  # first: one over the rest may overflow
    return ((num - certain) * shares).clamp(max=1)


def corrected_draws(
    draw: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    batch: int,
    num: int,
    start: int,
    most: int,
    ess: float,
    max_displaced: float | None,
    move: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose from draws that are added to until they are effective enough.

    Args:
        draw: Returns draws `(n, columns, D)` and log weights `(n, columns)`, given the
            indices of some observations and n.
        batch: Number of observations.
        num: Samples to choose for each.
        start: Draws to start with.
        most: Draws to stop at.
        ess: Effective sample size to stop at,
        max_displaced: if no more than this share of the weight is displaced by choosing
            none twice; None if draws may be chosen several times.
        move: Returns samples, `(num, columns, D)`, by moving draws `(n, columns, D)` with
            log weights `(n, columns)`, given the indices of their observations: where
            `most` draws displace more. Without it, or from fewer than 1,000 draws, the
            displacement is put up with.

    Returns:
        Samples, shape `(num, batch, D)`, and k̂ of their weights, `(batch,)`;
        minus infinity where fewer than 1,000 draws tell little.
    """
    columns = torch.arange(batch)
    theta, log_weights = draw(columns, start)
    samples = theta.new_empty(num, batch, theta.shape[-1])
    pareto_k = theta.new_full((batch,), -torch.inf)
    while True:
        need = ess / effective_sample_size(log_weights).cpu()
        crowded = torch.zeros_like(need, dtype=torch.bool)
        if max_displaced is not None:
            crowded = displaced(log_weights, num).cpu() > max_displaced
            need = torch.where(crowded, need.clamp(min=1.5), need)
        ready = (need <= 1) | (len(theta) >= most)
        if bool(ready.any()):
            weights = smooth(theta[:, ready], log_weights[:, ready])
            chosen = resample(weights.log_weights, num, max_displaced is None)
            picked = weights.theta.take_along_dim(chosen.unsqueeze(-1), 0)
            if len(theta) >= MIN_DRAWS_TO_JUDGE:
                pareto_k[columns[ready]] = weights.pareto_k
                thin = crowded[ready]
                if move is not None and bool(thin.any()):
                    picked[:, thin] = move(
                        columns[ready][thin],
                        weights.theta[:, thin],
                        weights.log_weights[:, thin],
                    )
            samples[:, columns[ready]] = picked
        if bool(ready.all()):
            return samples, pareto_k
        theta, log_weights = theta[:, ~ready], log_weights[:, ~ready]
        columns, need = columns[~ready], need[~ready]
        growth = float(need.median().clamp(1.2, 2.0))
        more = draw(columns, min(ceil(growth * len(theta)), most) - len(theta))
        theta = torch.cat([theta, more[0]])
        log_weights = torch.cat([log_weights, more[1]])
