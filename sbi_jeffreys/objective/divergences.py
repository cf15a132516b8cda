r"""The three divergences of the constrained Jeffreys problem, estimated on a batch.

With $\pi(\theta | x)$ the posterior, $H$ its expected entropy, $p_\phi$ the flow and
$q_\psi = e^{f_\psi} / Z_\psi$ the energy-based model,

    D1 = KL(π ‖ p) = E_π[−log p] − H                     the flow fits the data
    D2 = KL(p ‖ q) = E_{θ~p}[log p − f] + log Z          the flow agrees with the energy
    D3 = KL(π ‖ q) = E_π[−f] + log Z − H                 the energy fits the data

(Ben-Dov & Chamon, arXiv:2511.11159). H is unknown, so D1 and D3 are returned without it.
All divergences are in nats.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_jeffreys.models.conditional import Conditional
from sbi_jeffreys.objective.normalizers import Normalizer, log_normalizer


class Divergences(NamedTuple):
    """D1 + H, D2 and D3 + H in nats, one entry per condition, shape `(batch,)`."""

    kl_data_flow: Tensor
    kl_flow_energy: Tensor
    kl_data_energy: Tensor

    def mean(self, weights: Tensor | None = None) -> Tensor:
        """Return the means over the batch, shape `(3,)`.

        Args:
            weights: Weights of the pairs, shape `(batch,)`; by default all are one.
        """
        terms = torch.stack(self)
        return (terms if weights is None else terms * weights).mean(-1)


def jeffreys_divergences(
    flow: Conditional,
    energy: Callable[[Tensor], Tensor],
    theta: Tensor,
    num_particles: int,
    normalizer: Normalizer,
) -> Divergences:
    r"""Estimate D1, D2 and D3, with the gradients of their definitions.

    D1 is differentiable to $\phi$. D2 is differentiable to $\phi$, through the draws, and
    to $\psi$. D3 is differentiable to $\psi$ alone. The importance weights in log Z are
    detached from $\phi$.

    Args:
        flow: $p_\phi(\cdot | x)$ for a batch of x.
        energy: $f_\psi(\cdot, x)$ for the same x. It maps `(sample, batch, D)` to
            `(sample, batch)`. If several energies are averaged, it returns
            `(member, sample, batch)`. Then D3 is the mean of the members' own D3: each
            member fits the data by itself. The average would be normalised less well,
            because its Z is at most the geometric mean of theirs.
        theta: The parameters that x were simulated with, shape `(batch, D)`.
        num_particles: Number K of draws from the flow for each x.
        normalizer: The estimate of log Z, see `normalizers.log_normalizer`.

    Returns:
        D1 + H, D2 and D3 + H in nats, each of shape `(batch,)`.

    Raises:
        ValueError: If there is no estimate of log Z of that name.
    """
    log_p_data = flow.log_prob(theta.unsqueeze(0))[0]
    draws, log_p_draws = flow.rsample_and_log_prob(num_particles)

    # The energy sees draws that are cut from the flow. Its parameters get no gradient
    # through them. The flow gets exactly df/dθ, by `path`, and nothing by the weights.
    cut = draws.detach().requires_grad_()
    members = energy(torch.cat([theta.unsqueeze(0), cut]))
    members = members.reshape(-1, 1 + num_particles, len(theta))
    f_draws = members[:, 1:].mean(0)
    (slope,) = torch.autograd.grad(f_draws.sum(), cut, retain_graph=True)
    path = (slope * (draws - cut.detach())).flatten(2).sum(-1)

    log_z = partial(
        _log_z, log_p_data.detach(), log_p_draws.detach(), normalizer=normalizer
    )
    return Divergences(
        kl_data_flow=-log_p_data,
        kl_flow_energy=(log_p_draws - f_draws - path).mean(0) + log_z(members.mean(0)),
        kl_data_energy=torch.stack([log_z(f) - f[0] for f in members]).mean(0),
    )


def _log_z(
    log_p_data: Tensor, log_p_draws: Tensor, f: Tensor, normalizer: Normalizer
) -> Tensor:
    """Estimate log Z from f at the data point and at the draws, `(1 + K, batch)`."""
    return log_normalizer(f[1:] - log_p_draws, f[0] - log_p_data, normalizer)
