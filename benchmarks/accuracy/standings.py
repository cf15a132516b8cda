"""The benchmark's cells as tables in Markdown and as figures, beside published values."""

from collections.abc import Iterable, Iterator
from itertools import cycle
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.accuracy.cells import FINER, NUM_CALIBRATION_PAIRS
from benchmarks.accuracy.published import (
    BARS,
    Published,
    best_amortized,
    best_flow,
    plain_npe,
    published,
)
from benchmarks.methods.registry import METHODS
from benchmarks.report import made_by, spread, table
from benchmarks.tasks.sbibm import TASKS
from sbi_jeffreys.plots.style import GREY, PALETTE, panels

C2ST_NAMES = {
    "c2st_rf": "C2ST by sbi's random forest",
    "c2st_mlp": "C2ST by sbibm's network (z-scored MLP)",
}
BY_CHANCE = sqrt(pi / (32 * NUM_CALIBRATION_PAIRS))
"""Errors of SBC and TARP that an exact posterior has by chance: the mean distance of the
empirical distribution of N uniform variables from the uniform one is √(π / 32N)."""

QUANTITIES = {
    "nll": ("Test NLL in nats, weights kept", 3),
    "nll_last": ("Test NLL in nats, weights of the last epoch", 3),
    "sbc_error": (
        f"SBC error: mean distance of ranks from uniform (exact: about {BY_CHANCE:.3f})",
        3,
    ),
    "tarp_error": (
        "TARP error: mean distance of coverage from its level "
        f"(exact: about {BY_CHANCE:.3f})",
        3,
    ),
    "training_seconds": ("Seconds of training, of one processor", 0),
    "sampling_seconds": (
        "Seconds of 10,000 samples given one observation: median over observations",
        2,
    ),
}
NOTE = (
    "C2ST: 0.5 is perfect, 1 useless. A cell has the mean over observations, then over "
    "seeds, ± the standard deviation over seeds if there are several. In brackets are "
    "the numbers of seeds and of observations, and the standard deviation over "
    "observations. Where these numbers differ, methods were not given the same work. "
    "Classifiers are tested on all of five folds or on one. One fold adds a standard "
    "error of at most 0.008 to a cell.\n\n"
    "NLL, SBC and TARP are measured on the test pairs by which JNPE's defaults were "
    "chosen, on other simulations (see `ablations.md`). They are of sbi's flows without "
    "rejection. For C2ST, samples outside of the prior are rejected."
)


def report(cells: pd.DataFrame) -> str:
    """Return all tables of finished cells in Markdown.

    Args:
        cells: Finished cells, as `cells.read` returns them.

    Raises:
        ValueError: If they are of several commits.
    """
    cells = with_any_folds(cells)
    sections = ["# Accuracy beside sbi's methods", NOTE, made_by(cells)]
    for num in sorted(set(cells.num_simulations)):
        of_budget = cells[cells.num_simulations == num]
        sections.append(f"## {num:,} simulations")
        for column, title in C2ST_NAMES.items():
            sections += _c2st_section(of_budget.dropna(subset=column), column, title, num)
        for column, (title, digits) in QUANTITIES.items():
            rows = of_budget.dropna(subset=column)
            if len(rows):
                sections += [f"### {title}", _quantities(rows, column, digits)]
    return "\n\n".join(sections)


def with_any_folds(cells: pd.DataFrame) -> pd.DataFrame:
    """Return cells with the accuracy on all folds, or on one where only it exists."""
    values = {
        f"c2st_{whole}": cells[f"c2st_{whole}"].fillna(cells[f"c2st_{fold}"])
        for fold, whole in FINER.items()
    }
    return cells.assign(**values)


def _c2st_section(rows: pd.DataFrame, column: str, title: str, num: int) -> list[str]:
    if rows.empty:
        return []
    methods = _in_order(rows.method, METHODS)
    lines = []
    for task in _in_order(rows.task, TASKS):
        of_task = rows[rows.task == task]
        ours = [_c2st(of_task[of_task.method == method], column) for method in methods]
        quoted = [
            _quote(best(task, num)) for best in (plain_npe, best_flow, best_amortized)
        ]
        has_bar = num == 1000 and task in BARS and column == "c2st_rf"
        bar = f"{BARS[task]:.3f}" if has_bar else ""
        lines.append((task, *ours, bar, *quoted))
    header = ("task", *methods, "bar", "NPE, published", "best flow, published")
    return [f"### {title}", table((*header, "best amortised, published"), lines)]


def _c2st(rows: pd.DataFrame, column: str) -> str:
    if rows.empty:
        return ""
    by_seed = rows.groupby("seed")[column]
    means, counts = by_seed.mean(), by_seed.count()
    numbers = f"{len(means)}×{'/'.join(str(count) for count in sorted(set(counts)))}"
    by_observation = rows.groupby("observation")[column].mean()
    if len(by_observation) > 1:
        numbers += f"; {by_observation.std():.3f}"
    return f"{spread(means, 3)} ({numbers})"


def _quantities(rows: pd.DataFrame, column: str, digits: int) -> str:
    methods = _in_order(rows.method, METHODS)
    lines = []
    for task in _in_order(rows.task, TASKS):
        by_seed = rows[rows.task == task].groupby(["method", "seed"])[column].median()
        lines.append(
            (
                task,
                *(
                    spread(by_seed[method], digits)
                    if method in by_seed.index.get_level_values(0)
                    else ""
                    for method in methods
                ),
            )
        )
    return table(("task", *methods), lines)


def _quote(value: Published | None) -> str:
    return (
        "" if value is None else f"{value.c2st:.3f} ({value.method}; {value.classifier})"
    )


def _in_order(names: pd.Series, order: Iterable[str]) -> list[str]:
    present = set(names)
    return [name for name in order if name in present]


def figures(cells: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Yield a name and a figure for each task: C2ST of each method over the budgets.

    Filled points are means over the observations, one for each seed. JNPE's methods have
    circles. Crosses are published values.
    """
    cells = with_any_folds(cells)
    colors = dict(zip(_in_order(cells.method, METHODS), cycle(PALETTE), strict=False))
    for task in _in_order(cells.task, TASKS):
        rows = cells[cells.task == task].dropna(subset="c2st_rf")
        if rows.empty:
            continue
        methods = _in_order(rows.method, METHODS)
        budgets = sorted(set(rows.num_simulations))
        quoted = published().query("task == @task and classifier.str.startswith('RF')")
        with panels(1, 5.5, 3.4, columns=1) as (figure, (axes,)):
            for k, method in enumerate(methods):
                by_seed = (
                    rows[rows.method == method]
                    .groupby(["num_simulations", "seed"])["c2st_rf"]
                    .mean()
                    .reset_index()
                )
                shift = 1.04 ** (k - len(methods) / 2)
                axes.scatter(
                    by_seed.num_simulations * shift,
                    by_seed.c2st_rf,
                    s=14,
                    color=colors[method],
                    marker="o" if method.startswith("jnpe") else "^",
                    label=method,
                )
                means = by_seed.groupby("num_simulations").c2st_rf.mean()
                axes.plot(means.index * shift, means, color=colors[method], alpha=0.5)
            for method, group in quoted.groupby("method"):
                group = group[group.num_simulations.isin(budgets)]
                axes.scatter(
                    group.num_simulations, group.c2st_mean, marker="x", s=18, color=GREY
                )
                for num, value in zip(
                    group.num_simulations, group.c2st_mean, strict=True
                ):
                    axes.annotate(
                        str(method),
                        (num, value),
                        (4, -2),
                        textcoords="offset points",
                        fontsize=5,
                        color=GREY,
                    )
            if task in BARS and 1000 in budgets:
                axes.axhline(BARS[task], color=GREY, linestyle=":", label="bar at 1,000")
            axes.set(
                xscale="log",
                xlabel="simulations",
                ylabel="C2ST (random forest)",
                title=task,
                ylim=(0.48, max(0.8, float(np.nanmax(rows.c2st_rf)) + 0.05)),
                xlim=(min(budgets) / 1.3, max(budgets) * 1.5),
            )
            axes.set_xticks(budgets, [f"{num:,}" for num in budgets])
            axes.minorticks_off()
            axes.legend(fontsize=6)
        yield task, figure


def write_report(cells: pd.DataFrame, path: Path) -> None:
    """Write tables to `path` and the figures, as PNG, into a folder of its name."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for name, figure in figures(cells):
        figure.savefig(folder / f"{name}.png", dpi=110)
        images.append(f"![{name}]({folder.name}/{name}.png)")
    path.write_text("\n\n".join([report(cells), "## Figures", *images]) + "\n")
