r"""The three divergences of the constrained Jeffreys problem, estimated on a batch.

With $\pi(\theta | x)$ the posterior, $H$ its expected entropy, $p_\phi$ the flow and
$q_\psi = e^{f_\psi} / Z_\psi$ the energy-based model,

    D1 = KL(π ‖ p) = E_π[−log p] − H                     the flow fits the data
    D2 = KL(p ‖ q) = E_{θ~p}[log p − f] + log Z          the flow agrees with the energy
    D3 = KL(π ‖ q) = E_π[−f] + log Z − H                 the energy fits the data

(Ben-Dov & Chamon, arXiv:2511.11159). H is unknown: D1 and D3 are returned without it.
All are in nats.
"""

from collections.abc import Callable
from functools import partial
from math import exp, log
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sbi_jeffreys.models.conditional import Conditional

Normalizer = Literal["generalized", "importance", "ranking"]
NORMALIZERS: tuple[Normalizer, ...] = get_args(Normalizer)

LOG_WEIGHT_CAP = 5.0
"""Log weight beyond which the generalized normalizer grows linearly."""


class Divergences(NamedTuple):
    """The three terms, one entry per condition, shape `(batch,)`."""

    kl_data_flow: Tensor
    kl_flow_energy: Tensor
    kl_data_energy: Tensor

    def mean(self, weights: Tensor | None = None) -> Tensor:
        """Return their means over the batch, shape `(3,)`, weighted by `weights`."""
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

    D1 is differentiable to $\phi$; D2 to $\phi$, through the draws, and to $\psi$; D3 to
    $\psi$ alone. The importance weights in log Z are detached from $\phi$.

    Args:
        flow: $p_\phi(\cdot | x)$ for a batch of x.
        energy: $f_\psi(\cdot, x)$ for the same x, from `(sample, batch, D)` to
            `(sample, batch)`; or, of several energies that are averaged, to `(member,
            sample, batch)`. Each of these fits the data by itself: D3 is the mean of
            theirs. Their average is normalised less well than each of them: its Z is
            at most their geometric mean.
        theta: The parameters that x were simulated with, shape `(batch, D)`.
        num_particles: Draws K from the flow for each x.
        normalizer: How log Z is estimated, see `log_normalizer`.
    """
    log_p_data = flow.log_prob(theta.unsqueeze(0))[0]
    draws, log_p_draws = flow.rsample_and_log_prob(num_particles)

    # The energy sees draws cut from the flow: its parameters get no gradient through
    # them, and the flow gets exactly df/dθ, along `path`, and none of the weights.
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
    """Estimate log Z of f, given at the data point and the draws, `(1 + K, batch)`."""
    return log_normalizer(f[1:] - log_p_draws, f[0] - log_p_data, normalizer)


def log_normalizer(
    log_weights: Tensor, log_weight_data: Tensor, normalizer: Normalizer
) -> Tensor:
    r"""Estimate $\log Z_\psi(x)$ from weights $w = e^f / p$ of K draws from the flow.

    - "importance": $\log \frac1K \sum_k w_k$, biased low (Jensen).
    - "generalized": $\frac1K \sum_k w_k - 1 \ge \log Z$, the normaliser in the KL of
      unnormalised densities. Its gradient is unbiased for any K, and it is tight where
      Z = 1, which the minimiser satisfies. Above a cap, where this does not hold, w grows
      linearly in $\log w$: a clipped weight would have no gradient to shrink it.
    - "ranking": $\log \frac{1}{K+1} (w_{data} + \sum_k w_k)$; D3 then ranks the data
      point among the draws, and is bounded below.

    Args:
        log_weights: Shape `(K, batch)`.
        log_weight_data: That of the data point, shape `(batch,)`.
        normalizer: Which estimate.

    Returns:
        Shape `(batch,)`, in nats.
    """
    if normalizer == "importance":
        return log_weights.logsumexp(0) - log(len(log_weights))
    if normalizer == "generalized":
        capped = log_weights.clamp(max=LOG_WEIGHT_CAP).exp()
        beyond = (log_weights - LOG_WEIGHT_CAP).clamp(min=0) * exp(LOG_WEIGHT_CAP)
        return (capped + beyond).mean(0) - 1
    if normalizer == "ranking":
        candidates = torch.cat([log_weight_data.unsqueeze(0), log_weights])
        return candidates.logsumexp(0) - log(len(candidates))
    raise ValueError(f"Expected `normalizer` in {NORMALIZERS}, got {normalizer!r}.")


class Agreement(NamedTuple):
    """How the flow and the energy agree, one entry per condition, shape `(batch,)`.

    Attributes:
        kl_flow_energy: KL(p ‖ q), in nats.
        log_z: log Z, in nats.
        ess: Effective sample size of the importance weights over their number.
    """

    kl_flow_energy: Tensor
    log_z: Tensor
    ess: Tensor


def agreement(log_p_draws: Tensor, f_draws: Tensor) -> Agreement:
    """Estimate the agreement from draws of the flow.

    Where weights vary much, K draws flatter: log Z and the divergence are estimated too
    low, and the ESS is never below 1/K.

    Args:
        log_p_draws: The flow's log densities at its draws, shape `(K, batch)`.
        f_draws: The energy model's unnormalised ones, shape `(K, batch)`.
    """
    log_weights = f_draws - log_p_draws
    log_z = log_weights.logsumexp(0) - log(len(log_weights))
    shares = log_weights.softmax(0)
    return Agreement(
        kl_flow_energy=log_z - log_weights.mean(0),
        log_z=log_z,
        ess=1 / (len(shares) * shares.square().sum(0)),
    )
