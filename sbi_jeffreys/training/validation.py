"""Means over the held-out pairs."""

import torch

from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.processes import mean_over_processes
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.objective.agreement import agreement
from sbi_jeffreys.training.history import HELD_OUT


@torch.no_grad()
def held_out_means(
    pair: ModelPair, validation: Batches, num_draws: int
) -> dict[str, float]:
    """Return the losses of both models, and their agreement, on held-out pairs.

    Args:
        pair: The models.
        validation: The held-out pairs.
        num_draws: Number of draws from the flow for each x.

    Returns:
        One mean for each name in `HELD_OUT`: the negative log-likelihoods of the flow and
        of the energy, KL(flow|energy) and log Z in nats, and the ESS divided by the
        number of draws.
    """
    sums = next(pair.parameters()).new_zeros(len(HELD_OUT) + 1)
    for theta, x, weights in validation.ordered():
        flow, energy = pair.given(x)
        draws, log_p = flow.rsample_and_log_prob(num_draws)
        kl_flow_energy, log_z, ess = agreement(log_p, energy(draws))
        nll = -flow.log_prob(theta.unsqueeze(0))[0]
        energy_nll = log_z - energy(theta.unsqueeze(0))[0]
        columns = [weights * nll, weights * energy_nll, kl_flow_energy, log_z, ess]
        sums += torch.stack([*columns, torch.ones_like(nll)]).sum(-1)
    *totals, num_pairs = mean_over_processes(sums).tolist()
    means = [total / num_pairs for total in totals]
    return dict(zip(HELD_OUT, means, strict=True))
