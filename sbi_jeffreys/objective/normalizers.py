r"""Estimates of the log normaliser of the energy-based model.

Draws from the flow have importance weights $w_k = e^{f(\theta_k)} / p(\theta_k)$. Their
expectation is the normaliser $Z(x) = \int e^{f(\theta, x)} d\theta$.

To add an estimate, write its function here, enter it in `_ESTIMATES`, and add its name to
`Normalizer`.
"""

from collections.abc import Callable
from math import exp
from typing import Literal, get_args

import torch
from torch import Tensor

from sbi_jeffreys.sampling.importance_weights import log_mean_exp

Normalizer = Literal["generalized", "importance", "ranking"]
NORMALIZERS: tuple[Normalizer, ...] = get_args(Normalizer)

LOG_WEIGHT_CAP = 5.0
"""Log weight above which the generalized normaliser grows linearly, in nats."""


def log_normalizer(
    log_weights: Tensor, log_weight_data: Tensor, normalizer: Normalizer
) -> Tensor:
    r"""Estimate $\log Z_\psi(x)$ from the weights of K draws from the flow.

    - "importance": $\log \frac1K \sum_k w_k$. It is biased low by Jensen's inequality.
    - "generalized": $\frac1K \sum_k w_k - 1 \ge \log Z$, as in the KL divergence of
      unnormalised densities. Its gradient is unbiased for any K. The bound is tight where
      Z = 1, and the minimiser of the objective has Z = 1. Above a cap on $\log w$, the
      gradient is biased, because w grows linearly there. A clipped weight would have no
      gradient to shrink it.
    - "ranking": $\log \frac{1}{K+1} (w_{data} + \sum_k w_k)$. D3 then ranks the data
      point among the draws, and is bounded below.

    Args:
        log_weights: Log weights of the draws in nats, shape `(K, batch)`.
        log_weight_data: Log weights of the data points in nats, shape `(batch,)`.
        normalizer: The estimate: "importance", "generalized" or "ranking".

    Returns:
        Estimates in nats, shape `(batch,)`.

    Raises:
        ValueError: If there is no estimate of that name.
    """
    if normalizer not in _ESTIMATES:
        raise ValueError(f"Expected `normalizer` in {NORMALIZERS}, got {normalizer!r}.")
    return _ESTIMATES[normalizer](log_weights, log_weight_data)


def _importance(log_weights: Tensor, log_weight_data: Tensor) -> Tensor:
    r"""$\log \frac1K \sum_k w_k$."""
    return log_mean_exp(log_weights)


def _generalized(log_weights: Tensor, log_weight_data: Tensor) -> Tensor:
    r"""$\frac1K \sum_k w_k - 1$, with weights that grow linearly above the cap."""
    capped = log_weights.clamp(max=LOG_WEIGHT_CAP).exp()
    beyond = (log_weights - LOG_WEIGHT_CAP).clamp(min=0) * exp(LOG_WEIGHT_CAP)
    return (capped + beyond).mean(0) - 1


def _ranking(log_weights: Tensor, log_weight_data: Tensor) -> Tensor:
    r"""$\log \frac{1}{K+1} (w_{data} + \sum_k w_k)$."""
    candidates = torch.cat([log_weight_data.unsqueeze(0), log_weights])
    return log_mean_exp(candidates)


_ESTIMATES: dict[Normalizer, Callable[[Tensor, Tensor], Tensor]] = {
    "generalized": _generalized,
    "importance": _importance,
    "ranking": _ranking,
}
