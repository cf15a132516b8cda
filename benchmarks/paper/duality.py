r"""Primal and dual values of the resilient problem: Theorem 1 of arXiv:2511.11159.

With multipliers λ, the dual value G(λ) is the minimum of the Lagrangian over all models.
It is at most the least primal value P*. The duality gap P − G vanishes at a solution of a
convex problem. Two problems are small enough to compute G:

- numbers: D1 = (φ − 1)² / 2, D2 = (φ − ψ)² / 2, D3 = (ψ + 1)² / 2.
- densities: π, p and q live on a grid. p and q are mixtures of fixed bumps, which are
  too wide for π, and other bumps for p than for q. The divergences are convex in the
  weights.

For networks P − L is known, where L is the Lagrangian at the present models. It says that
the multipliers have settled. Networks that do not move at all are the control.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize
from torch import Tensor

from benchmarks.paper.fits import METHODS, estimator_of, fit_for
from benchmarks.paper.planar import draw_mixture
from benchmarks.report import spread, table
from benchmarks.rows import curve, numbers
from sbi_jeffreys.objective.multipliers import Lagrangian, ResilientMultipliers
from sbi_jeffreys.plots.style import PALETTE, panels

SLACK, COST, STEP_SIZE = 0.3, 0.7, 0.05
STEPS_PER_EPOCH = 10
STEPS_PER_VALUE = 50
"""Steps of a convex problem from one computation of G to the next."""


@dataclass(frozen=True)
class Convex:
    """A convex problem.

    Attributes:
        divergences: Maps the models' numbers, `(num,)`, to D1, D2 and D3, `(3,)`.
        num: How many numbers the models have.
        rate: Their learning rate.
    """

    divergences: Callable[[Tensor], Tensor]
    num: int
    rate: float

    def minimum(self, objective: Callable[[Tensor], Tensor]) -> float:
        """Return the minimum of a function of the divergences, over all models."""

        def value_and_slope(point: np.ndarray) -> tuple[float, np.ndarray]:
            models = torch.from_numpy(point).requires_grad_()
            value = objective(self.divergences(models))
            (slope,) = torch.autograd.grad(value, models)
            return value.item(), slope.numpy()

        start, options = np.full(self.num, 0.1), {"ftol": 1e-15, "gtol": 1e-10}
        found = minimize(
            value_and_slope, start, jac=True, method="L-BFGS-B", options=options
        )
        return float(found.fun)

    def least_primal(self, multipliers: ResilientMultipliers) -> float:
        """Return P*, for multipliers with these slacks, costs and bounds."""
        return self.minimum(lambda d: multipliers.lagrangian(d).primal_value)

    def dual(self, multipliers: ResilientMultipliers) -> float:
        """Return G at the present multipliers."""
        return self.minimum(lambda d: multipliers.lagrangian(d).value)

    def path(
        self, seed: int, steps: int, multipliers: ResilientMultipliers
    ) -> list["Point"]:
        """Descend and ascend, in float64, and return the values on the way.

        Args:
            seed: Seed of the models' start.
            steps: Number of steps.
            multipliers: Changed in place.
        """
        generator = torch.Generator().manual_seed(seed)
        models = torch.randn(self.num, generator=generator, dtype=torch.float64)
        multipliers.values = multipliers.values.double()
        multipliers.slack = multipliers.slack.double()
        points = []
        for step in range(steps):
            models.requires_grad_()
            d = self.divergences(models)
            (slope,) = torch.autograd.grad((multipliers.values * d).sum(), models)
            models, d = models.detach() - self.rate * slope, d.detach()
            if step % STEPS_PER_VALUE == 0 or step == steps - 1:
                dual = self.dual(multipliers)
                points.append(Point(multipliers.lagrangian(d), dual))
            multipliers.update(d)
        return points


class Point(NamedTuple):
    """Values at one step of a convex problem.

    Attributes:
        lagrangian: At the models as they are.
        dual: G, the minimum over all models.
    """

    lagrangian: Lagrangian
    dual: float


def _of_numbers(models: Tensor) -> Tensor:
    phi, psi = models
    return torch.stack([phi - 1, phi - psi, psi + 1]).square() / 2


def _of_densities(models: Tensor) -> Tensor:
    """Return the divergences of densities on a grid; models are logits of weights."""
    grid = torch.linspace(-3, 3, 61, dtype=torch.float64)

    def bumps(centers: list[float], width: float) -> Tensor:
        z = (grid - torch.tensor(centers, dtype=torch.float64).unsqueeze(-1)) / width
        return (-z.square() / 2).softmax(-1)

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one * (one.log() - other.log())).sum()

    shares = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    pi = shares @ bumps([-1.5, 0.0, 1.5], 0.3)
    p = models[:3].softmax(0) @ bumps([-1.5, 0.2, 1.7], 0.6)
    q = models[3:].softmax(0) @ bumps([-1.7, -0.2, 1.5], 0.6)
    return torch.stack([kl(pi, p), kl(p, q), kl(pi, q)])


CONVEX = {
    "numbers": Convex(_of_numbers, 2, 0.05),
    "densities": Convex(_of_densities, 6, 0.5),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "networks": {},
    "networks that do not move": {"learning_rate": 1e-12},
}
"""Arguments of the training of networks, by the name of the problem."""


class Row(NamedTuple):
    """Results of one training in nats.

    Attributes:
        problem: Name of one of `CONVEX` or `NETWORKS`.
        seed: Seed of points and networks, or of a convex problem's start.
        num_samples: Points for training and validation together. No effect if convex.
        epochs: Epochs trained. Convex problems have `STEPS_PER_EPOCH` steps for each.
        least_primal: P*, NaN for networks.
        primal_curve: P, after each epoch, or each `STEPS_PER_VALUE` steps.
        lagrangian_curve: L, likewise.
        dual_curve: G, likewise; empty for networks.
    """

    problem: str
    seed: int
    num_samples: int
    epochs: int
    least_primal: float
    primal_curve: str
    lagrangian_curve: str
    dual_curve: str


def keys(
    seeds: list[int], num_samples: int, epochs: int
) -> list[tuple[str, int, int, int]]:
    """Return the keys of all rows."""
    problems = (*CONVEX, *NETWORKS)
    return [(p, seed, num_samples, epochs) for p in problems for seed in seeds]


def train(problem: str, seed: int, num_samples: int, epochs: int) -> Row:
    """Train, and record.

    Args:
        problem: Name of one of `CONVEX` or `NETWORKS`.
        seed: Of points and networks, or of the start.
        num_samples: For training and validation together.
        epochs: To train.
    """
    least, duals = float("nan"), []
    if problem in CONVEX:
        convex, multipliers = CONVEX[problem], new_multipliers()
        path = convex.path(seed, STEPS_PER_EPOCH * epochs, multipliers)
        primals = [float(point.lagrangian.primal_value) for point in path]
        lagrangians = [float(point.lagrangian.value) for point in path]
        duals, least = [point.dual for point in path], convex.least_primal(multipliers)
    else:
        torch.manual_seed(seed)
        points, estimator = draw_mixture(num_samples, seed), estimator_of(METHODS["ours"])
        summary = fit_for(epochs, points, estimator, **NETWORKS[problem]).summary
        primals = summary["primal_value"]
        gaps = summary["multiplier_gap"]
        lagrangians = [p - gap for p, gap in zip(primals, gaps, strict=True)]
    curves = map(curve, (primals, lagrangians, duals))
    return Row(problem, seed, num_samples, epochs, least, *curves)


def new_multipliers(highest: float = 100.0) -> ResilientMultipliers:
    """Return multipliers of a convex problem, which are at most `highest`."""
    return ResilientMultipliers(SLACK, COST, STEP_SIZE, bounds=(0.0, highest))


def report(rows: pd.DataFrame) -> str:
    """Return the table, in Markdown: primal, Lagrangian and dual values at the end."""
    lines = []
    for problem, some in rows.groupby("problem", sort=False):
        curves = (
            [numbers(words) for words in column]
            for column in (some.primal_curve, some.lagrangian_curve, some.dual_curve)
        )
        primal, lagrangian, dual = (_last(values) for values in curves)
        known = ("", "", "")
        if problem in CONVEX:
            least, gap = some.least_primal.mean(), (primal - dual).max()
            known = (f"{least:.4f}", spread(dual, 4), f"{gap:.1g}")
        gaps = spread(primal - lagrangian, 4)
        lines.append((problem, spread(primal, 4), gaps, *known))
    (num,), (epochs,) = set(rows.num_samples), set(rows.epochs)
    columns = ("problem", "P", "P − L", "P*", "G", "P − G, largest")
    return "\n\n".join(
        [
            "P is the primal value of the models, L the Lagrangian, G its minimum over "
            "all models, and P* the least primal value of all models, found by scipy. "
            'P − G is the duality gap. P − L is `summary["multiplier_gap"]`. Values are '
            "those of the last step or epoch, in nats (× weight), mean ± standard "
            "deviation over seeds.",
            f"The convex problems have {STEPS_PER_EPOCH * epochs:,} steps. The networks "
            f"have {num:,} points of a mixture of five Gaussians in the plane, default "
            f"options and {epochs:,} epochs. Networks that do not move have a learning "
            "rate of nearly zero.",
            table(columns, lines),
            "Theorem 1 is about P − G. Networks that do not move are the control of "
            "P − L: where it is as small for them, it is no evidence of the theorem.",
        ]
    )


def _last(curves: list[list[float]]) -> pd.Series:
    return pd.Series([values[-1] if values else float("nan") for values in curves])


def figure(rows: pd.DataFrame) -> Figure:
    """Return the gaps over the training, of the first seed."""
    rows = rows[rows.seed == rows.seed.min()].set_index("problem")
    names = [name for name in (*CONVEX, *NETWORKS) if name in rows.index]
    with panels(len(names), 3.6, 2.6, columns=2) as (result, axes):
        for axis, name in zip(axes, names, strict=True):
            row = rows.loc[name]
            primal = np.array(numbers(row.primal_curve))
            per_value = STEPS_PER_VALUE if name in CONVEX else 1
            others = {"P − L": row.lagrangian_curve, "P − G": row.dual_curve}
            for color, (label, words) in zip(PALETTE, others.items(), strict=False):
                if values := numbers(words):
                    gap = np.clip(primal - np.array(values), 1e-6, None)
                    axis.plot(
                        per_value * np.arange(len(gap)), gap, color=color, label=label
                    )
            axis.set(yscale="log", title=name, ylabel="nats (× weight)")
            axis.set_xlabel("step" if name in CONVEX else "epoch")
            axis.legend()
    return result
