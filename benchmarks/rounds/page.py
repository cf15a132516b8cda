"""The page of the command `rounds`: C2ST against simulations, with published values."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.report import made_by, table
from sbi_jeffreys.plots.style import GREY, color_of, panels

PUBLISHED = Path(__file__).with_name("published_sequential.csv")
SEQUENTIAL = ("TSNPE-PFN", "SNLE", "SNPE", "SNRE", "TSNPE")
"""Published methods that are shown."""


def report(rows: pd.DataFrame) -> str:
    """Return the page in Markdown.

    Args:
        rows: Posteriors, as `runs.Row` has them.
    """
    sections = [
        "# One observation and a fixed number of simulations",
        "C2ST by a random forest against the reference posterior, 0.5 is perfect: mean "
        "over observations and seeds. `jnpe_rounds` is `run_rounds` at default options, "
        "`jnpe` the corrected posterior of as many simulations of the prior. Published "
        "values are means over ten observations, by the classifier that is given.",
        made_by(rows),
        "![C2ST against simulations](rounds.png)",
    ]
    published = pd.read_csv(PUBLISHED)
    for num, some in rows.groupby("num_simulations"):
        sections += [f"## {num:,} simulations", _table(some, published, int(num))]
    return "\n\n".join(sections)


def _table(rows: pd.DataFrame, published: pd.DataFrame, num: int) -> str:
    lines = []
    for (task, method), some in rows.groupby(["task", "method"], sort=False):
        best = _best(published, str(task), num)
        lines.append(
            (
                task,
                method,
                some.observation.nunique(),
                " ".join(map(str, sorted(set(some.seed)))),
                f"{some.c2st.mean():.3f}",
                f"{some.c2st.max():.3f}",
                f"{some['shift'].median():.2f}",
                f"{some.sd_ratio.median():.2f}",
                f"{some.seconds.median():.0f}",
                best,
            )
        )
    columns = (
        *("task", "method", "observations", "seeds", "C2ST", "largest C2ST"),
        *("shift of a mean, sd", "ratio of sd", "CPU s", "best published"),
    )
    return table(columns, lines)


def _best(published: pd.DataFrame, task: str, num: int) -> str:
    some = published[(published.task == task) & (published.budget == num)]
    if some.empty:
        return ""
    best = some.loc[some.value.idxmin()]
    return f"{best.value:.3f} ({best.method}, {best.classifier})"


def figure(rows: pd.DataFrame) -> Figure:
    """Return C2ST against simulations, a panel for each task."""
    published = pd.read_csv(PUBLISHED)
    tasks = list(dict.fromkeys(rows.task))
    with panels(len(tasks), 3.0, 2.4, columns=5) as (result, axes):
        for axis, task in zip(axes, tasks, strict=True):
            for method in SEQUENTIAL:
                some = published[(published.task == task) & (published.method == method)]
                some = some.groupby("budget").value.min()
                axis.plot(some.index, some, ":", color=GREY, linewidth=0.8)
            for method, some in rows[rows.task == task].groupby("method", sort=False):
                means = some.groupby("num_simulations").c2st.mean()
                color = color_of(str(method))
                axis.plot(means.index, means, "o-", color=color, label=method)
            axis.set(xscale="log", ylim=(0.48, 1.02), title=task)
        axes[0].set(ylabel="C2ST", xlabel="simulations")
        axes[0].legend(fontsize=6)
    return result
