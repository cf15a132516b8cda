r"""Pareto-smoothed importance sampling (PSIS), and a check of the weights.

The largest of N weights, a fifth of them or :math:`3 \sqrt N` if that is less, are
replaced by quantiles of the generalized Pareto distribution that fits them. Its shape k̂
tells how heavy the tail of the weights is. Above 0.7, no affordable number of draws gives
reliable estimates (Vehtari et al., JMLR 25(72), 2024). arviz does the fit. This module
needs no torch.
"""

import numpy as np

from sbi_jeffreys import _arviz

MAX_PARETO_K = 0.7
"""Largest k̂ at which importance weights are reliable (Vehtari et al.)."""

TIED = 1e-6
"""Log weights that differ by less than this, in nats, count as equal."""
TIED_ROUNDINGS = 1000
"""So do log weights that differ by less than this many units of rounding. A log weight is
the difference of two log densities, and each of these is a sum of rounded terms."""

MIN_POSITIVE, MIN_ABOVE_CUTOFF = 25, 5
"""A tail is fitted only if there are this many positive weights, and if this many of them
are above the cutoff."""


def pareto_smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Smooth the largest importance weights, and measure how heavy their tail is.

    Weights of zero are left out of the fit and stay zero.

    Args:
        log_weights: In nats, shape `(..., N)`; minus infinity for a weight of zero. The
            precision should be that in which they were computed. Then those that differ
            by rounding count as equal. The array is not modified.

    Returns:
        Smoothed log weights, shape `(..., N)`, and the shape k̂ of each row's tail,
        `(...)`. The weights of each row sum to one. k̂ is infinite where no tail can be
        fitted because there are fewer than 25 positive weights or fewer than 5 above the
        cutoff. k̂ is minus infinity where the largest weights are equal: there is no tail.

    Raises:
        ValueError: If weights are NaN or infinite, or all weights of a row are zero.
    """
    tied = max(TIED, TIED_ROUNDINGS * np.finfo(log_weights.dtype).eps)
    log_weights = np.array(log_weights, dtype=float)
    if log_weights.ndim == 0 or not log_weights.shape[-1]:
        raise ValueError(
            f"Expected `log_weights` of shape (..., N), N > 0, got {log_weights.shape}."
        )
    if not (log_weights < np.inf).all():
        raise ValueError(
            "Expected `log_weights` to be finite or minus infinity, got "
            f"{int((~(log_weights < np.inf)).sum())} that are NaN or infinite."
        )
    largest = log_weights.max(-1, keepdims=True)
    if np.isneginf(largest).any():
        raise ValueError(
            "Expected `log_weights` with at least one positive weight in each row, got "
            f"{int(np.isneginf(largest).sum())} rows where all weights are zero."
        )
    shifted = log_weights - largest
    normalised = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    pareto_k = np.empty(log_weights.shape[:-1])
    for row in np.ndindex(pareto_k.shape):
        pareto_k[row] = _smooth_tail(shifted[row], normalised[row], tied)
    return normalised, pareto_k


def _smooth_tail(log_weights: np.ndarray, normalised: np.ndarray, tied: float) -> float:
    """Return k̂ of log weights `(N,)` whose largest is 0.

    If there is a tail, which spans more than `tied` nats, write the smoothed log weights
    into `normalised`, `(N,)`.
    """
    if _around_cutoff(log_weights)[1] > -tied:
        return -np.inf
    is_positive = log_weights > np.log(np.finfo(float).tiny)
    positive = log_weights[is_positive]
    num_above = (positive > _around_cutoff(positive)[0]).sum()
    if len(positive) < MIN_POSITIVE or num_above < MIN_ABOVE_CUTOFF:
        return np.inf
    with np.errstate(all="ignore"):
        smoothed, pareto_k = _arviz.psis(positive)
    if not np.isfinite(pareto_k):
        return np.inf
    normalised[is_positive] = smoothed
    return float(pareto_k)


def _around_cutoff(log_weights: np.ndarray) -> tuple[float, float]:
    """Return the largest log weight below the tail and the smallest one in the tail."""
    num = len(log_weights)
    tail = min(max(5, int(min(num / 5, 3 * num**0.5))), num)
    ascending = np.sort(log_weights)
    return ascending[max(num - tail - 1, 0)], ascending[num - tail]
