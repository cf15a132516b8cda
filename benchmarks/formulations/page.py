"""The page of the command `formulations`."""

from math import isnan, sqrt

import pandas as pd
import torch

from benchmarks.formulations.problems import GRID, REFERENCE
from benchmarks.formulations.trainings import MIXTURE, NUM_MIXTURE_TEST
from benchmarks.paper.planar import mixture
from benchmarks.paper.weights import Z_RANGE
from benchmarks.report import made_by, table, words
from benchmarks.rows import numbers

JUDGED = {
    "flow_kept": "flow, kept epoch",
    "energy_kept": "energy, kept epoch",
    "flow_last": "flow, last epoch",
    "energy_last": "energy, last epoch",
}
"""Columns of rows that a problem is judged by, and their headings."""

KEY = ["task", "num_simulations", "seed"]


def report(rows: pd.DataFrame) -> str:
    """Return the page in Markdown.

    Args:
        rows: Trainings, as `trainings.Row` has them.

    Raises:
        ValueError: If the rows are of several commits.
    """
    tasks, planar = rows[rows.task != MIXTURE], rows[rows.task == MIXTURE]
    sections = [
        "# Which problem flow and energy are trained to solve",
        "A line is a problem of `benchmarks/formulations/problems.py`. There is no pool, "
        "and the flow follows nothing. Numbers are fixed weights of KL(data ‖ flow), "
        "KL(flow ‖ energy) and KL(data ‖ energy). All trainings of a task have the same "
        "number of epochs. The kept epoch has the lowest held-out loss of the flow. "
        'JNPE\'s default is "resilient"; `weighting="constrained"` is '
        '"inequality, 0.1".',
        made_by(rows),
    ]
    if len(tasks):
        sections += ["## Posteriors", *_posteriors(tasks)]
    if len(planar):
        sections += ["## A mixture in the plane (Figure 2)", *_mixture(planar)]
    return "\n\n".join(sections)


def _posteriors(rows: pd.DataFrame) -> list[str]:
    differences = _differences(rows)
    parts = [
        f"A value is the test NLL less that of {REFERENCE} on the same simulations, in "
        "nats: below zero is better. In the first table it is a mean over tasks and "
        "budgets. With several seeds, brackets have the numbers of tasks and budgets "
        "where it is better / worse by more than two standard errors. An energy that is "
        "not trained has no value. Seconds are CPU seconds of the training, as a ratio "
        f"to {REFERENCE}.",
        _summary(differences),
    ]
    for (task, num), some in differences.groupby(["task", "num_simulations"], sort=False):
        seeds = words(some.seed)
        lines = []
        for name, of_name in some.groupby("formulation", sort=False):
            lines.append(
                (
                    name,
                    *(_with_error(of_name[column]) for column in JUDGED),
                    _multipliers(of_name),
                )
            )
        columns = ("problem", *JUDGED.values(), "last weights")
        parts += [
            f"### {task}, {num:,} simulations, seeds {seeds}",
            table(columns, lines),
        ]
    return parts


def _differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with losses and seconds relative to those of the reference."""
    reference = rows[rows.formulation == REFERENCE]
    both = rows.merge(reference, on=KEY, suffixes=("", "_reference"))
    for column in JUDGED:
        both[column] -= both[f"{column}_reference"]
    both["seconds"] /= both.seconds_reference
    return both


def _summary(differences: pd.DataFrame) -> str:
    lines = []
    for name, some in differences.groupby("formulation", sort=False):
        cells = []
        for column in JUDGED:
            groups = some.groupby(["task", "num_simulations"])[column]
            mean, error = groups.mean(), groups.std() / groups.count().pow(0.5)
            cell = "" if mean.isna().all() else f"{mean.mean():+.3f}"
            if cell and error.notna().all():
                better, worse = (mean < -2 * error).sum(), (mean > 2 * error).sum()
                cell += f" ({better} / {worse})"
            cells.append(cell)
        lines.append((name, *cells, f"{some.seconds.median():.1f}"))
    return table(("problem", *JUDGED.values(), "seconds"), lines)


def _number(value: float) -> str:
    return "" if isnan(value) else f"{value:.3f}"


def _with_error(values: pd.Series) -> str:
    if values.isna().any():
        return ""
    if len(values) == 1:
        return f"{values.mean():+.3f}"
    return f"{values.mean():+.3f} ± {values.std() / sqrt(len(values)):.3f}"


def _multipliers(rows: pd.DataFrame) -> str:
    values = torch.tensor([numbers(entry) for entry in rows.multipliers]).mean(0)
    return " / ".join(f"{value:.2f}" for value in values.tolist())


def _mixture(rows: pd.DataFrame) -> list[str]:
    """Return the comparison with all fixed weightings of the grid."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        entropy = -mixture().log_prob(mixture().sample((100_000,))).mean()
    (num,), seeds = set(rows.num_simulations), sorted(set(rows.seed))
    lines = []
    for name, some in rows.groupby("formulation", sort=False):
        beaten = [_num_beaten(rows[rows.seed == seed], name) for seed in seeds]
        low, high = some.z_last.min(), some.z_last.max()
        is_inside = Z_RANGE[0] <= low and high <= Z_RANGE[1]
        lines.append(
            (
                some.flow_last.mean(),
                name,
                *(_number(some[column].mean() - float(entropy)) for column in JUDGED),
                " ".join(map(str, beaten)),
                f"{low:.2f} to {high:.2f}" + ("" if is_inside else ", outside"),
                _multipliers(some),
            )
        )
    columns = (
        "problem",
        *JUDGED.values(),
        f"beaten of {len(GRID)}, by seed",
        "Z",
        "last weights",
    )
    return [
        f"{num:,} points of a mixture of five Gaussians, "
        f"{words(rows.epochs)} epochs, seeds {words(seeds)}. A value is the KL from the "
        f'mixture in nats, from {NUM_MIXTURE_TEST:,} points, mean over seeds. "Beaten" '
        "counts the fixed weightings whose flow is worse at the last epoch. Z is the "
        f"energy's normaliser at the last epoch; it should be within {Z_RANGE}.",
        table(columns, [line[1:] for line in sorted(lines)]),
    ]


def _num_beaten(rows: pd.DataFrame, name: str) -> int:
    """Return how many weightings of the grid are worse by the last flow, of one seed."""
    own = rows.flow_last[rows.formulation == name].min()
    others = rows[rows.formulation.isin(list(GRID)) & (rows.formulation != name)]
    return int((others.flow_last > own).sum())
