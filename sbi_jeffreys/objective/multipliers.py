r"""Weights of the three divergences: fixed, or multipliers of a resilient problem.

    min over φ, ψ, ε of h(ε)   subject to   D_i(φ, ψ) ≤ ε_i ,   i = 1, 2, 3

with $h(\epsilon) = \frac\alpha2 \sum_i (\epsilon_i + \kappa_i)^2$. Descent on the
Lagrangian $h(\epsilon) + \sum_i \lambda_i (D_i - \epsilon_i)$ weighs each divergence by
its multiplier; the relaxation that minimises it is $\epsilon_i = \lambda_i / \alpha -
\kappa_i$. (Hounie, Ribeiro & Chamon, arXiv:2306.02426.)

With bounds on the multipliers, h grows linearly where these are reached (Huber's
function): it is the largest of $\lambda (\epsilon + \kappa) - \lambda^2 / 2 \alpha$
within the bounds. Models with divergences D have the primal value P = h(D), and with
multipliers $\lambda$ the Lagrangian

    L = Σ_i λ_i (D_i + κ_i) − λ_i² / 2α ≤ P ,

with equality exactly at the multipliers that answer to D. The dual value, the least L of
any models, is below the least P (weak duality); that both meet where models are rich
enough is Theorem 1 of arXiv:2511.11159.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Duality(NamedTuple):
    r"""How far models and multipliers are from a saddle point; no more than that.

    The gap P − L is zero at one. It is a part of what separates P from the dual value:
    the other, from L down to its least over all models, is not known for networks.

    Attributes:
        violations: $D - \epsilon$ in nats, shape `(3,)`.
        primal_value: P, shape `()`.
        lagrangian: L, shape `()`.
    """

    violations: Tensor
    primal_value: Tensor
    lagrangian: Tensor

    @property
    def gap(self) -> Tensor:
        """P − L, never negative, shape `()`."""
        return (self.primal_value - self.lagrangian).clamp(min=0)  # rounding aside


class ResilientMultipliers:
    r"""Projected dual ascent, $\lambda \leftarrow [\lambda + \eta (D - \epsilon)]$.

    At rest $\lambda_i = \alpha (D_i + \kappa_i)$: whatever fits worst gets the attention,
    a divergence of zero keeps the weight $\alpha\kappa_i$, and one of $-\kappa_i$ nats
    loses it. The upper bound makes h Lipschitz.
    """

    def __init__(
        self,
        slack: float | tuple[float, float, float] = 1.0,
        relaxation_cost: float = 1.0,
        step_size: float = 0.02,
        bounds: tuple[float, float] = (0.05, 3.0),
        device: torch.device | str = "cpu",
    ) -> None:
        r"""
        Args:
            slack: $\kappa$, in nats: one for all, or three.
            relaxation_cost: $\alpha$, in 1/nats.
            step_size: $\eta$.
            bounds: Least and largest value of a multiplier.
        """
        self.slack = torch.tensor(slack, device=device).expand(3)
        self.relaxation_cost = relaxation_cost
        self.step_size = step_size
        self.bounds = bounds
        self.values = torch.ones(3, device=device).clamp(*bounds)

    @property
    def relaxation(self) -> Tensor:
        r"""$\epsilon = (\nabla h)^{-1}(\lambda)$, in nats, shape `(3,)`."""
        return self.values / self.relaxation_cost - self.slack

    def update(self, divergences: Tensor) -> None:
        """Ascend by one step, in place, given D1, D2 and D3 in nats, shape `(3,)`.

        Stay, if one of them is not finite, as when the entropy reference is not known.
        """
        violation = divergences.detach() - self.relaxation
        violation = torch.where(violation.isfinite().all(), violation, 0.0)
        self.values.add_(violation, alpha=self.step_size).clamp_(*self.bounds)

    def duality(self, divergences: Tensor) -> Duality:
        """Compare the models with the multipliers.

        Args:
            divergences: D1, D2 and D3 in nats, shape `(3,)`.
        """
        best = (self.relaxation_cost * (divergences + self.slack)).clamp(*self.bounds)
        primal_value, lagrangian = (
            (values * (divergences + self.slack)).sum()
            - values.square().sum() / (2 * self.relaxation_cost)
            for values in (best, self.values)
        )
        return Duality(divergences - self.relaxation, primal_value, lagrangian)


class FixedMultipliers:
    """The penalty problem: three weights that stay as they are."""

    def __init__(
        self, values: tuple[float, float, float], device: torch.device | str = "cpu"
    ) -> None:
        self.values = torch.tensor(values, device=device)

    def update(self, divergences: Tensor) -> None:
        """Do nothing."""


class EntropyReference:
    r"""Stands in for the unknown expected entropy H of the posterior.

    The lowest held-out negative log-likelihood of the flow seen so far. D1 is then below
    zero exactly when the flow fits its training set better than any model yet has
    fitted unseen pairs, that is, when it memorises. Infinite before the first value.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.value = torch.tensor(torch.inf, device=device)

    def update(self, held_out_nll: float) -> None:
        """Take in a held-out negative log-likelihood, in nats."""
        self.value.clamp_(max=held_out_nll)

    def subtract(self, divergences: Tensor) -> Tensor:
        """Return D1 − H, D2 and D3 − H, shape `(3,)`; before any value, not finite."""
        to_flow, between, to_energy = divergences
        return torch.stack([to_flow - self.value, between, to_energy - self.value])
