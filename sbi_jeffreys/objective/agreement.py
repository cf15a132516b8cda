r"""How well flow and energy agree, estimated from draws of the flow.

With the log weights $\log w_k = f(\theta_k) - \log p(\theta_k)$ of K draws,

    log Z     = log (1/K) Σ_k w_k
    KL(p ‖ q) = log Z − (1/K) Σ_k log w_k
    ESS / K   = (Σ_k w_k)² / (K Σ_k w_k²) .
"""

from math import log
from typing import NamedTuple

from torch import Tensor


class Agreement(NamedTuple):
    """Agreement of flow and energy, one entry per condition, shape `(batch,)`.

    Attributes:
        kl_flow_energy: KL(p ‖ q), in nats.
        log_z: log Z, in nats.
        ess: Effective sample size of the importance weights, divided by their number.
    """

    kl_flow_energy: Tensor
    log_z: Tensor
    ess: Tensor


def agreement(log_p_draws: Tensor, f_draws: Tensor) -> Agreement:
    """Estimate the agreement from draws of the flow.

    Where weights vary much, K draws are too optimistic: log Z and the divergence are
    estimated too low, and the ESS is never below 1/K.

    Args:
        log_p_draws: The flow's log densities at its draws in nats, shape `(K, batch)`.
        f_draws: The energy's unnormalised log densities in nats, shape `(K, batch)`.
    """
    log_weights = f_draws - log_p_draws
    log_z = log_weights.logsumexp(0) - log(len(log_weights))
    shares = log_weights.softmax(0)
    return Agreement(
        kl_flow_energy=log_z - log_weights.mean(0),
        log_z=log_z,
        ess=1 / (len(shares) * shares.square().sum(0)),
    )
