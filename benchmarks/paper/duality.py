"""The distance of training from a saddle point: Theorem 1 of arXiv:2511.11159.

It is measured on a convex problem, where the dual and the primal value are the same, and
for networks.
"""

from typing import NamedTuple

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
from sbi_jeffreys.objective.multipliers import Duality, ResilientMultipliers
from sbi_jeffreys.plots.style import PALETTE, panels
from sbi_jeffreys.training.history import TERMS

SLACK, COST = 0.3, 0.7
PROBLEMS = ("convex", "networks")
VIOLATIONS = ("violation of D1, last", "of D2", "of D3")


class Row(NamedTuple):
    """Results of one training in nats. Curves have an entry for each step or epoch.

    Attributes:
        problem: One of `PROBLEMS`.
        seed: Seed of points and networks, or of the convex problem's start.
        num_samples: Points for training and validation together. No effect if convex.
        epochs: Epochs trained. The convex problem has ten steps for each.
        gap_curve: Primal value less Lagrangian.
        primal_curve: Primal value.
        d1_curve: Violation of the constraint on D1.
        d2_curve: Violation of the constraint on D2.
        d3_curve: Violation of the constraint on D3.
    """

    problem: str
    seed: int
    num_samples: int
    epochs: int
    gap_curve: str
    primal_curve: str
    d1_curve: str
    d2_curve: str
    d3_curve: str


def keys(
    seeds: list[int], num_samples: int, epochs: int
) -> list[tuple[str, int, int, int]]:
    """Return the keys of all rows."""
    return [(p, seed, num_samples, epochs) for p in PROBLEMS for seed in seeds]


def convex_path(
    start: tuple[float, float], steps: int, multipliers: ResilientMultipliers
) -> list[Duality]:
    """Descend and ascend on a convex problem, and return the dualities on the way.

    D1 = (φ − 1)² / 2, D2 = (φ − ψ)² / 2, D3 = (ψ + 1)² / 2. D1 pulls φ to 1, D3 pulls ψ
    to −1, and D2 pulls them together. All in float64.

    Args:
        start: φ and ψ.
        steps: Number of steps, of 0.05 for φ and ψ.
        multipliers: Changed in place.
    """
    phi, psi = torch.tensor(start, dtype=torch.float64)
    multipliers.values = multipliers.values.double()
    multipliers.slack = multipliers.slack.double()
    path = []
    for _ in range(steps):
        distances = torch.stack([phi - 1, phi - psi, psi + 1])
        path.append(multipliers.duality(distances.square() / 2))
        forces = multipliers.values * distances
        phi = phi - 0.05 * (forces[0] + forces[1])
        psi = psi - 0.05 * (forces[2] - forces[1])
        multipliers.update(distances.square() / 2)
    return path


def convex_minimum() -> float:
    """Return the least primal value of the convex problem without bounds."""

    def primal(point: np.ndarray) -> float:
        distances = np.array([point[0] - 1, point[0] - point[1], point[1] + 1])
        return COST / 2 * np.square(np.square(distances) / 2 + SLACK).sum()

    return float(minimize(primal, [0.5, -0.5], tol=1e-12).fun)


def train(problem: str, seed: int, num_samples: int, epochs: int) -> Row:
    """Train, and record.

    Args:
        problem: One of `PROBLEMS`.
        seed: Of points and networks, or of the start.
        num_samples: For training and validation together.
        epochs: To train.
    """
    if problem == "convex":
        x, y = torch.randn(2, generator=torch.Generator().manual_seed(seed)).tolist()
        multipliers = ResilientMultipliers(SLACK, COST, 0.05, bounds=(0.0, 100.0))
        path = convex_path((3 * x, 3 * y), 10 * epochs, multipliers)
        gaps, primal_values, violations = (
            [float(duality.gap) for duality in path],
            [float(duality.primal_value) for duality in path],
            torch.stack([duality.violations for duality in path]),
        )
    else:
        torch.manual_seed(seed)
        points = draw_mixture(num_samples, seed)
        summary = fit_for(epochs, points, estimator_of(METHODS["ours"])).summary
        gaps, primal_values = summary["duality_gap"], summary["primal_value"]
        violations = torch.tensor(summary["constraint_violations"])
    by_term: list[Tensor] = list(violations.T)
    return Row(
        problem,
        seed,
        num_samples,
        epochs,
        curve(gaps),
        curve(primal_values),
        *(curve(values.tolist()) for values in by_term),
    )


def report(rows: pd.DataFrame) -> str:
    """Return the table, in Markdown: gaps and violations at the start and at the end."""
    lines = []
    for problem in PROBLEMS:
        of_problem = rows[rows.problem == problem]
        gaps, primal_values = (
            pd.DataFrame([numbers(words) for words in column])
            for column in (of_problem.gap_curve, of_problem.primal_curve)
        )
        last = max(1, gaps.shape[1] // 10)
        ends = [gaps.iloc[:, :last], gaps.iloc[:, -last:], primal_values.iloc[:, -last:]]
        violations = [
            pd.Series(
                [abs(np.mean(numbers(words)[-last:])) for words in of_problem[name]]
            )
            for name in ("d1_curve", "d2_curve", "d3_curve")
        ]
        lines.append(
            (
                problem,
                *(spread(part.mean(axis=1), 4) for part in ends),
                *(spread(values, 4) for values in violations),
            )
        )
    convex = rows[rows.problem == "convex"]
    reached = [numbers(words)[-1] - convex_minimum() for words in convex.primal_curve]
    (num,), (epochs,) = set(rows.num_samples), set(rows.epochs)
    return "\n\n".join(
        [
            "The gap is P − L, the primal value less the Lagrangian, as in "
            "`sbi_jeffreys.objective.multipliers`. It is a part of the duality gap, and "
            "the only part that can be computed for networks. The convex problem has two "
            f"numbers and {10 * epochs:,} steps. The networks have {num:,} points of a "
            f"mixture of five Gaussians in the plane, default options and {epochs:,} "
            "epochs.",
            "Values are means over the first and the last tenth of the training, in nats "
            "(× weight), ± standard deviation over seeds. Of violations, the absolute "
            "value of the mean is shown. D1 is KL(data || flow), D2 KL(flow || energy) "
            "and D3 KL(data || energy).",
            table(
                ("problem", "gap, first", "gap, last", "P, last", *VIOLATIONS),
                lines,
            ),
            "On the convex problem the primal value ends within "
            f"{max(map(abs, reached)):.1g} of its minimum, found by scipy.",
        ]
    )


def figure(rows: pd.DataFrame) -> Figure:
    """Return gaps and violations over the training, of the first seed."""
    rows = rows[rows.seed == rows.seed.min()].set_index("problem")
    with panels(4, 3.6, 2.6, columns=2) as (result, axes):
        for pair, problem in zip((axes[:2], axes[2:]), PROBLEMS, strict=True):
            gaps = numbers(rows.gap_curve[problem])
            pair[0].plot(range(1, 1 + len(gaps)), gaps, color=PALETTE[0])
            pair[0].set(yscale="log", ylabel="gap", title=f"{problem}: P − L")
            for color, term, name in zip(
                PALETTE, TERMS, ("d1_curve", "d2_curve", "d3_curve"), strict=False
            ):
                values = numbers(rows[name][problem])
                pair[1].plot(range(1, 1 + len(values)), values, color=color, label=term)
            pair[1].set(ylabel="nats", title=f"{problem}: violations", ylim=(-1, 1))
            pair[1].axhline(0, color="black", linewidth=0.5)
            pair[1].legend()
            for axis in pair:
                axis.set_xlabel("step" if problem == "convex" else "epoch")
    return result
