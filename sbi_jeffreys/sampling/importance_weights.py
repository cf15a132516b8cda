r"""Importance weights: effective sample size, log Z and KL(flow ‖ energy).

Draws :math:`\theta_k \sim p`, k = 1, …, N, of a flow p have weights
:math:`w_k = e^{f(\theta_k)} / p(\theta_k)` for an energy f. From these follow

.. code-block:: text

    ESS = (Σ w_k)² / Σ w_k²
    log Z ≈ log(Σ w_k / N),   variance 1/ESS − 1/N
    KL(p ‖ q) ≈ log Z − 1/N Σ log w_k,   q = e^f / Z

All functions take log weights of shape `(N, batch)` in nats.
"""

from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_jeffreys.sampling.psis import pareto_smoothed


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Return the ESS, between 1 and N, shape `(batch,)`, in double precision.

    It is 0 where all weights are zero.
    """
    shares = log_weights.double().softmax(0)
    return (1 / shares.square().sum(0)).nan_to_num(0.0)


def relative_ess(log_weights: Tensor) -> Tensor:
    """Return the ESS over the number of draws, between 1/N and 1, shape `(batch,)`."""
    shares = log_weights.softmax(0)
    return 1 / (len(shares) * shares.square().sum(0))


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Return the log of the mean weight, the estimate of log Z, shape `(batch,)`."""
    return log_weights.logsumexp(0) - log(len(log_weights))


def log_z_variance(ess: Tensor, num: int) -> Tensor:
    """Return the variance of `log_mean_exp` of `num` draws, by the delta method."""
    return 1 / ess - 1 / num


def kl_flow_energy(log_weights: Tensor, log_z: Tensor) -> Tensor:
    r"""Return KL(p ‖ q) in nats, shape `(batch,)`.

    Draws with a weight of zero lie outside the prior, where a posterior rejects them. So
    p is the flow restricted to the prior. With a share s of the draws inside,

    .. math:: KL(p \| q) = \log Z - \log s - E_p[\log w].

    Args:
        log_weights: Shape `(N, batch)`; minus infinity outside the prior.
        log_z: log Z, estimated from all draws, shape `(batch,)`.
    """
    outside = log_weights.isneginf()
    num_inside = len(log_weights) - outside.sum(0)
    mean = log_weights.masked_fill(outside, 0.0).sum(0) / num_inside
    return log_z - (num_inside / len(log_weights)).log() - mean


def kl_flow_energy_se(log_weights: Tensor, shares: Tensor) -> Tensor:
    """Return the standard error of `kl_flow_energy`, by the delta method, `(batch,)`.

    Args:
        log_weights: Shape `(N, batch)`; minus infinity outside the prior.
        shares: Weights that sum to one, smoothed as for log Z, shape `(N, batch)`.
    """
    inside = ~log_weights.isneginf()
    num = inside.sum(0)
    # A draw contributes to the mean of −log w, and through its share to log Z.
    terms = torch.where(inside, num * shares - log_weights, 0.0)
    centred = torch.where(inside, terms - terms.sum(0) / num, 0.0)
    return centred.square().sum(0).sqrt() / num


class ImportanceWeights(NamedTuple):
    """Draws from the flow, with the weights that correct them to the energy model.

    Attributes:
        theta: Draws, shape `(num, batch, D)`.
        log_weights: Logs of smoothed weights that sum to one, shape `(num, batch)`.
        pareto_k: Shape k̂ of the weights' tail, `(batch,)`. Weights are unreliable
            above 0.7. It is minus infinity where the largest weights are equal.
        ess: Effective sample size, between 1 and num, `(batch,)`.
        log_z: Estimate of log Z in nats, `(batch,)`.
        log_z_se: Standard error of `log_z`, `(batch,)`.
    """

    theta: Tensor
    log_weights: Tensor
    pareto_k: Tensor
    ess: Tensor
    log_z: Tensor
    log_z_se: Tensor


def smoothed_weights(theta: Tensor, log_weights: Tensor) -> ImportanceWeights:
    """Smooth and normalise importance weights, and measure how good they are.

    Args:
        theta: Draws, shape `(num, batch, D)`.
        log_weights: Their log weights, shape `(num, batch)`; minus infinity for a weight
            of zero.

    Raises:
        RuntimeError: If all draws for some observation have a weight of zero.
    """
    num = len(log_weights)
    raw = log_weights.double()
    if num and bool(raw.amax(0).isneginf().any()):
        raise RuntimeError(
            f"None of {num} draws of the flow is inside the prior's support for at least "
            "one observation: the flow cannot be corrected there."
        )
    smoothed, pareto_k = pareto_smoothed(log_weights.detach().T.cpu().numpy())
    log_shares = torch.from_numpy(smoothed).to(raw.device).T
    # Smoothing changes at most a fifth of the weights. For the others the difference is
    # the constant that was subtracted to normalise them.
    offset = (raw - log_shares).nanmedian(0).values
    ess = effective_sample_size(log_shares)
    return ImportanceWeights(
        theta,
        log_shares.to(log_weights),
        torch.from_numpy(pareto_k).to(log_weights),
        ess.to(log_weights),
        (offset - log(num)).to(log_weights),
        log_z_variance(ess, num).clamp(min=0).sqrt().to(log_weights),
    )
