"""The benchmark's cells as tables in Markdown and as figures, beside published values."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.accuracy.cells import FINER
from benchmarks.accuracy.published import (
    BARS,
    Published,
    best_amortized,
    best_flow,
    plain_npe,
)
from benchmarks.methods.registry import METHODS
from benchmarks.report import made_by, spread, table
from benchmarks.tasks.sbibm import TASKS
from sbi_jeffreys.plots.style import color_of, legend_below, panels

C2ST_NAMES = {
    "c2st_rf": "C2ST by sbi's random forest",
    "c2st_mlp": "C2ST by sbibm's network (z-scored MLP)",
}
QUANTITIES = {
    "nll": ("Test NLL in nats", 3),
    "training_seconds": ("Seconds of training, of one processor", 0),
    "sampling_seconds": (
        "Seconds of 10,000 samples given one observation: median over observations",
        2,
    ),
}
NOTE = (
    "C2ST: 0.5 is perfect, 1 useless. A cell has the mean over observations, then over "
    "seeds, ± the standard deviation over seeds if there are several. Classifiers are "
    "tested on all of five folds or on one. One fold adds a standard error of at most "
    "0.008 to a cell.\n\n"
    "NLL is measured on the test pairs by which JNPE's defaults were chosen, on other "
    "simulations (see `ablations.md`). NPE's is that within the prior, as its samples "
    "outside of the prior are rejected. That of a corrected posterior has Z from 200 "
    "draws of the flow. It is somewhat too low where both differ much.\n\n"
    '"Bar" is what this project set out to reach. Published values are each method\'s by '
    'its own source, with the classifier in brackets. "As in source" means that the '
    "source does not name it, or that the value was read off its figures. "
    "`published_c2st.csv` names the sources."
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
    numbers = rows.groupby(["task", "method"]).apply(_numbers, include_groups=False)
    usual = numbers.mode()[0]
    lines = []
    for task in _in_order(rows.task, TASKS):
        of_task = rows[rows.task == task]
        ours = [
            _c2st(of_task[of_task.method == method], column, usual) for method in methods
        ]
        quoted = [
            _quote(best(task, num)) for best in (plain_npe, best_flow, best_amortized)
        ]
        has_bar = num == 1000 and task in BARS and column == "c2st_rf"
        bar = f"{BARS[task]:.3f}" if has_bar else ""
        lines.append((task, *ours, bar, *quoted))
    header = ("task", *methods, "bar", "NPE, published", "best flow, published")
    return [
        f"### {title}",
        f"Seeds × observations: {usual}, if no bracket says otherwise.",
        table((*header, "best amortised, published"), lines),
    ]


def _c2st(rows: pd.DataFrame, column: str, usual: str) -> str:
    if rows.empty:
        return ""
    numbers = _numbers(rows)
    bracket = "" if numbers == usual else f" ({numbers})"
    return spread(rows.groupby("seed")[column].mean(), 3) + bracket


def _numbers(rows: pd.DataFrame) -> str:
    """Return the number of seeds, and that of observations of each."""
    counts = rows.groupby("seed").observation.count()
    return f"{len(counts)} × {'/'.join(map(str, sorted(set(counts))))}"


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


LABELS = {
    "npe_nsf": "NPE nsf",
    "npe_maf": "NPE maf",
    "npe_nsf_ensemble": "ensemble of 5 NPE nsf",
    "jnpe_flow": "JNPE flow",
    "jnpe_corrected": "JNPE corrected",
    "jnpe_networks": "JNPE, networks alone",
}
"""What is drawn, and its label."""


def overview(cells: pd.DataFrame) -> Figure:
    """Return C2ST by the random forest, task by task; points are seeds.

    Args:
        cells: Finished cells of one number of simulations.
    """
    rows = with_any_folds(cells).dropna(subset="c2st_rf")
    tasks, methods = _in_order(rows.task, TASKS), _in_order(rows.method, LABELS)
    scores = rows.groupby(["method", "task", "seed"]).c2st_rf.mean()
    with panels(1, 7.5, 3.6, columns=1) as (figure, (axes,)):
        for k, method in enumerate(methods):
            offset = 0.8 * ((k + 0.5) / len(methods) - 0.5)
            places = [tasks.index(task) + offset for task, _ in scores[method].index]
            axes.scatter(
                places,
                scores[method],
                s=14,
                color=color_of(LABELS[method]),
                marker="o" if method.startswith("jnpe") else "^",
                label=LABELS[method],
            )
        axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
        axes.set(ylabel="C2ST (random forest)", ylim=(0.48, 1.02))
        legend_below(figure, axes)
    return figure


def write_report(cells: pd.DataFrame, path: Path) -> None:
    """Write tables to `path`, and a figure for each budget into a folder of its name."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for num, of_budget in cells.groupby("num_simulations"):
        overview(of_budget).savefig(folder / f"c2st_{num}.png", dpi=120)
        image = f"![C2ST, {num:,} simulations]({folder.name}/c2st_{num}.png)"
        images.append(image)
    path.write_text("\n\n".join([report(cells), "## Figures", *images]) + "\n")
