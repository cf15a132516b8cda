"""The page of the command `controls`."""

from math import sqrt

import numpy as np
import pandas as pd

from benchmarks.controls.trainings import LEVELS, METHODS, NUM_X
from benchmarks.report import made_by, spread, table, words
from benchmarks.rows import numbers

ESTIMATES = {
    "flow": ("nll", "covered"),
    "corrected": ("nll_corrected", "covered_corrected"),
}

LEGEND = {
    "flow alone": "the flow of `JNPE`, by maximum likelihood",
    "without agreement": "flow and energy, each by maximum likelihood",
    "pair": "flow and energy by the constrained Jeffreys objective: the paper's method",
    "pool alone": "the simpler models without networks, and the flow that follows them",
    "jnpe": "all together: `JNPE` at default options",
}


def report(rows: pd.DataFrame) -> str:
    """Return the page in Markdown.

    Args:
        rows: Trainings, as `trainings.Row` has them.
    """
    errors = [50 / sqrt(num) for num in NUM_X.values()]
    sections = [
        "# What each part gives",
        made_by(rows),
        table(("control", "what is trained"), LEGEND.items()),
        "Losses are test NLL in nats, mean over seeds ± standard deviation. The last "
        "line of a table has the mean over its tasks. NPE's is within the prior.",
        "Coverage is the share of truths in central intervals of single parameters, in "
        "percent less the level: below zero, a posterior is too narrow. It is a mean "
        f"over parameters, tasks and seeds, from {NUM_X['flow']:,} fresh pairs for a "
        f"flow and {NUM_X['corrected']} for a corrected posterior. The standard error "
        f"of one task with one parameter is {errors[0]:.1f} and {errors[1]:.1f} at a "
        "level of 50 %, and smaller at others.",
    ]
    for num, some in rows.groupby("num_simulations"):
        some = _complete(some)
        sections += [f"## {num:,} simulations, seeds {words(some.seed)}"]
        sections += [_losses(some), _coverage(some)]
    return "\n\n".join(sections)


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of tasks and seeds that all methods have finished."""
    methods = rows.method.nunique()
    finished = rows.groupby(["task", "seed"]).method.transform("nunique")
    return rows[finished == methods]


def _columns(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return pairs of a method and an estimate that have values."""
    present = [method for method in METHODS if method in set(rows.method)]
    return [
        (method, estimate)
        for method in present
        for estimate, (loss, _) in ESTIMATES.items()
        if rows[rows.method == method][loss].notna().all()
        and (method, estimate) != ("flow alone", "corrected")
    ]


def _losses(rows: pd.DataFrame) -> str:
    columns = _columns(rows)
    lines, means = [], []
    for task, some in rows.groupby("task", sort=False):
        of_task = [some[some.method == method][ESTIMATES[e][0]] for method, e in columns]
        means.append([values.mean() for values in of_task])
        lines.append((task, *(spread(values, 2) for values in of_task)))
    total = np.mean(means, 0)
    lines.append(("mean", *(f"{value:.2f}" for value in total)))
    return table(("task", *map(_title, columns)), lines)


def _coverage(rows: pd.DataFrame) -> str:
    lines = []
    for method, estimate in _columns(rows):
        entries = rows[rows.method == method][ESTIMATES[estimate][1]]
        shares = np.array([numbers(entry) for entry in entries])
        over = 100 * (shares - np.array(LEVELS))
        lowest = over.min(0)
        cells = [
            f"{m:+.1f} ({w:+.1f})" for m, w in zip(over.mean(0), lowest, strict=True)
        ]
        lines.append((_title((method, estimate)), *cells))
    headings = (f"{level:.0%} (lowest)" for level in LEVELS)
    return table(("posterior", *headings), lines)


def _title(column: tuple[str, str]) -> str:
    method, estimate = column
    return method if method.startswith("npe") else f"{method}, {estimate}"
