r"""How well flow and energy agree, from the importance weights of the flow's draws."""

from typing import NamedTuple

from torch import Tensor

from sbi_jeffreys.sampling.importance_weights import (
    kl_flow_energy,
    log_mean_exp,
    relative_ess,
)


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
    log_z = log_mean_exp(log_weights)
    return Agreement(
        kl_flow_energy=kl_flow_energy(log_weights, log_z),
        log_z=log_z,
        ess=relative_ess(log_weights),
    )
