"""The page of the command `trust`."""

from math import isnan

import numpy as np
import pandas as pd

from benchmarks.report import made_by, table, words
from benchmarks.rows import numbers
from benchmarks.trust.trainings import ESTIMATES, NUM_X, NUMBERS


def report(rows: pd.DataFrame) -> str:
    """Return the page in Markdown.

    Args:
        rows: Trainings, as `trainings.Row` has them.
    """
    return "\n\n".join(
        [
            "# What predicts the error of a posterior",
            "The error at x is KL(exact posterior ‖ estimate) in nats. It is known on "
            f"these tasks, and measured at {NUM_X} x for each training. An area of 1 "
            "means that the largest values of a number are at the fifth of the x with "
            "the largest errors; by chance the area is 0.5.",
            f"{made_by(rows)} Seeds {words(rows.seed)}.",
            "## Numbers",
            "Means over tasks, budgets and seeds; in brackets the lowest of a training. "
            "Ranks are rank correlations.",
            _numbers(rows),
            "## Errors",
            "The last columns have the share of errors above 0.5 nats among the x at "
            "which `agreement` says that flow and energy agree. Means over seeds.",
            _errors(rows),
        ]
    )


def _numbers(rows: pd.DataFrame) -> str:
    columns = {
        f"{measure}s_{estimate}": f"{measure}, {estimate}"
        for estimate in ESTIMATES
        for measure in ("area", "rank")
    }
    measured = [np.array([numbers(entry) for entry in rows[name]]) for name in columns]
    lines = []
    for i, name in enumerate(NUMBERS.values()):
        of_name = [values[:, i] for values in measured]
        lines.append((name, *(f"{v.mean():.2f} ({v.min():.2f})" for v in of_name)))
    return table(("number", *columns.values()), lines)


def _errors(rows: pd.DataFrame) -> str:
    lines = []
    for (task, num), some in rows.groupby(["task", "num_simulations"], sort=False):
        errors = [f"{some[f'kl_{name}'].mean():.2f}" for name in ESTIMATES]
        large = [some[f"large_{name}"].mean() for name in ESTIMATES]
        shares = ["" if isnan(share) else f"{share:.0%}" for share in large]
        lines.append((task, f"{num:,}", *errors, *shares))
    columns = [
        f"{measure}, {estimate}"
        for measure in ("mean error", "large where they agree")
        for estimate in ESTIMATES
    ]
    return table(("task", "simulations", *columns), lines)
