r"""Weights of the three divergences: fixed, or the multipliers of a problem.

The constrained problem is

    min over φ, ψ of Σ_i ω_i D_i   subject to   D_1(φ) ≤ 0   and   D_3(φ, ψ) ≤ 0 .

Both models have to fit the data as well as the reference does that stands in for H. The
multipliers of the constraints, μ ≥ 0, go by plain dual ascent, and D_1 and D_3 have the
weights λ = ω + μ. A divergence that is above zero gains weight for as long as it is, and
one that the models memorise loses all but ω.

The resilient problem is

    min over φ, ψ, ε of h(ε)   subject to   D_i(φ, ψ) ≤ ε_i ,   i = 1, 2, 3

with the cost $h(\epsilon) = \frac\alpha2 \sum_i (\epsilon_i + \kappa_i)^2$ of the
relaxations $\epsilon$. In the Lagrangian $h(\epsilon) + \sum_i \lambda_i (D_i -
\epsilon_i)$, each divergence is weighted by its multiplier. The relaxation that minimises
it is $\epsilon_i = \lambda_i / \alpha - \kappa_i$ (Hounie, Ribeiro & Chamon,
arXiv:2306.02426).

The multipliers are bounded. Where a bound is reached, h grows linearly, as Huber's
function does: h is the maximum of $\lambda (\epsilon + \kappa) - \lambda^2 / 2 \alpha$
over the $\lambda$ within the bounds. Models with divergences D have the primal value
P = h(D). With multipliers $\lambda$ they have the Lagrangian

    L = Σ_i λ_i (D_i + κ_i) − λ_i² / 2α ≤ P .

L = P holds exactly for the multipliers that maximise L. The dual value is the minimum of
L over all models. It is at most the minimum of P (weak duality). Both are equal where the
models are rich enough (Theorem 1 of arXiv:2511.11159).
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Multipliers(Protocol):
    """Weights of the three divergences.

    Attributes:
        values: Shape `(3,)`, at an address that does not change.
    """

    values: Tensor

    def update(self, divergences: Tensor) -> None:
        """Adapt the weights, in place, after a step of the models.

        Args:
            divergences: D1, D2 and D3 in nats, shape `(3,)`.
        """

    def report(self, divergences: Tensor) -> dict[str, Any]:
        """Return what the history of a training records, by name.

        Args:
            divergences: Means over an epoch, in nats, shape `(3,)`.
        """
        ...


class Lagrangian(NamedTuple):
    r"""Values of the resilient problem, for models and multipliers as they are.

    Attributes:
        violations: $D - \epsilon$ in nats, shape `(3,)`.
        primal_value: P, shape `()`.
        value: L, shape `()`.
    """

    violations: Tensor
    primal_value: Tensor
    value: Tensor

    @property
    def multiplier_gap(self) -> Tensor:
        """P − L, never negative, shape `()`: what other multipliers would add to L.

        This is not the duality gap. It says that the multipliers have settled, and it
        vanishes for any models that no longer move. The duality gap is P less the
        minimum of L over all models, which is not known for networks.
        """
        return (self.primal_value - self.value).clamp(min=0)  # rounding aside


class ResilientMultipliers:
    r"""Projected dual ascent, $\lambda \leftarrow [\lambda + \eta (D - \epsilon)]$.

    At rest $\lambda_i = \alpha (D_i + \kappa_i)$. The divergence that fits worst gets the
    largest weight. A divergence of zero keeps the weight $\alpha\kappa_i$. A divergence
    of $-\kappa_i$ nats has the least weight. The upper bound makes h Lipschitz.
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
            slack: $\kappa$ in nats, one number for all divergences or three.
            relaxation_cost: $\alpha$, in 1/nats.
            step_size: $\eta$, in 1/nats.
            bounds: Least and largest value of a multiplier.
            device: Where the multipliers are kept.
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
        """Take one step of dual ascent, in place.

        If a divergence is not finite, the multipliers stay as they are. D1 and D3 are not
        finite before the entropy reference has its first value.

        Args:
            divergences: D1, D2 and D3 in nats, shape `(3,)`.
        """
        violation = divergences.detach() - self.relaxation
        violation = torch.where(violation.isfinite().all(), violation, 0.0)
        self.values.add_(violation, alpha=self.step_size).clamp_(*self.bounds)

    def lagrangian(self, divergences: Tensor) -> Lagrangian:
        """Return the primal value and the Lagrangian of models with these divergences.

        Args:
            divergences: D1, D2 and D3 in nats, shape `(3,)`.
        """
        best = (self.relaxation_cost * (divergences + self.slack)).clamp(*self.bounds)
        primal_value, value = (
            (values * (divergences + self.slack)).sum()
            - values.square().sum() / (2 * self.relaxation_cost)
            for values in (best, self.values)
        )
        return Lagrangian(divergences - self.relaxation, primal_value, value)

    def report(self, divergences: Tensor) -> dict[str, Any]:
        """Return violations, primal value and gap of the multipliers, by name."""
        values = self.lagrangian(divergences)
        return {
            "constraint_violations": values.violations.tolist(),
            "primal_value": float(values.primal_value),
            "multiplier_gap": float(values.multiplier_gap),
        }


class ConstrainedMultipliers:
    r"""Plain dual ascent, $\lambda \leftarrow \max(\omega, \lambda + \eta D)$.

    It has no leak, and no bound but $\omega$. $D_2$ has no constraint and keeps its
    weight.
    """

    def __init__(
        self,
        weights: tuple[float, float, float] = (0.1, 1.0, 0.1),
        step_size: float = 0.02,
        device: torch.device | str = "cpu",
    ) -> None:
        r"""
        Args:
            weights: $\omega$, the weights of D1, D2 and D3 in the objective.
            step_size: $\eta$, in 1/nats.
            device: Where the multipliers are kept.
        """
        self.weights = torch.tensor(weights, device=device)
        self.step_size = step_size
        self.values = torch.maximum(self.weights, torch.ones(3, device=device))
        self.values[1] = self.weights[1]
        self._is_constrained = torch.tensor([1.0, 0.0, 1.0], device=device)

    def update(self, divergences: Tensor) -> None:
        """Take one step of dual ascent, in place, if all divergences are finite.

        D1 and D3 are not before the entropy reference has its first value.

        Args:
            divergences: D1, D2 and D3 in nats, shape `(3,)`.
        """
        divergences = divergences.detach()
        violation = torch.where(divergences.isfinite().all(), divergences, 0.0)
        self.values.add_(violation * self._is_constrained, alpha=self.step_size)
        torch.maximum(self.values, self.weights, out=self.values)

    def report(self, divergences: Tensor) -> dict[str, Any]:
        """Return the violations, of which that of D2 is zero, by name."""
        violations = torch.where(self._is_constrained > 0, divergences, 0.0)
        return {"constraint_violations": violations.tolist()}


class FixedMultipliers:
    """Three constant weights, for the penalty problem."""

    def __init__(
        self, values: tuple[float, float, float], device: torch.device | str = "cpu"
    ) -> None:
        """
        Args:
            values: Weights of D1, D2 and D3.
            device: Where the weights are kept.
        """
        self.values = torch.tensor(values, device=device)

    def update(self, divergences: Tensor) -> None:
        """Do nothing: the weights are constant."""

    def report(self, divergences: Tensor) -> dict[str, Any]:
        """Return nothing: there are no constraints."""
        return {}


class EntropyReference:
    r"""An estimate of the unknown expected entropy H of the posterior.

    It is the lowest held-out negative log-likelihood of the flow so far. D1 is then
    negative exactly if the flow fits its training set better than any flow so far has
    fitted held-out pairs. This is a sign of overfitting. The estimate is infinite before
    the first value.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.value = torch.tensor(torch.inf, device=device)

    def update(self, held_out_nll: float) -> None:
        """Include another held-out negative log-likelihood, in nats."""
        self.value.clamp_(max=held_out_nll)

    def subtract(self, divergences: Tensor) -> Tensor:
        """Return D1, D2 and D3 in nats, shape `(3,)`.

        D1 and D3 are not finite before the first value.

        Args:
            divergences: D1 + H, D2 and D3 + H in nats, shape `(3,)`.
        """
        kl_data_flow, kl_flow_energy, kl_data_energy = divergences
        return torch.stack(
            [kl_data_flow - self.value, kl_flow_energy, kl_data_energy - self.value]
        )
