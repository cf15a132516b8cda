"""The page of the command `cost`: accuracy against CPU seconds."""

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.cost.trainings import NPE
from benchmarks.report import made_by, table
from sbi_jeffreys.plots.style import GREY, color_of, panels

REFERENCE = "npe_nsf"
PHASES = ("networks", "pool", "following")


def report(rows: pd.DataFrame) -> str:
    """Return the page in Markdown.

    Args:
        rows: Trainings, as `trainings.Row` has them.
    """
    sections = [
        "# What a training costs, and what it gives for that",
        "A row is a median over tasks and seeds, unless it names a task. Ratios are to "
        f"the CPU seconds of `{REFERENCE}` on the same simulations. Gains are test NLL "
        f"of `{REFERENCE}` less that of the method, in nats, means over tasks and seeds. "
        "`jnpe_5` is JNPE with `max_num_epochs=5`.",
        made_by(rows),
        "![Gain in test NLL against CPU seconds](cost.png)",
    ]
    for num, some in rows.groupby("num_simulations"):
        sections += [f"## {num:,} simulations", _methods(some), _tasks(some)]
    return "\n\n".join(sections)


def _joined(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with those of the reference on the same simulations beside them."""
    key = ["task", "num_simulations", "seed"]
    reference = rows[rows.method == REFERENCE]
    both = rows.merge(reference, on=key, suffixes=("", "_npe"))
    both["ratio"] = both.seconds / both.seconds_npe
    both["gain"] = both.nll_npe - both.nll
    both["gain_corrected"] = both.nll_npe - both.nll_corrected
    both["sampling_ratio"] = both.sampling / both.sampling_npe
    both["sampling_many_ratio"] = both.sampling_many / both.sampling_many_npe
    return both


def _methods(rows: pd.DataFrame) -> str:
    """Return the table of methods."""
    lines = []
    for method, some in _joined(rows).groupby("method", sort=False):
        phases = " / ".join(f"{some[phase].median():.0f}" for phase in PHASES)
        lines.append(
            (
                method,
                some.task.nunique(),
                " ".join(map(str, sorted(set(some.seed)))),
                f"{some.seconds.median():.0f}",
                "" if method in NPE else phases,
                f"{some.ratio.median():.1f}",
                f"{some.ratio.max():.1f}",
                _number(some.gain.mean()),
                _number(some.gain_corrected.mean()),
                _number(some.c2st.mean(), 3),
                _number(some.c2st_corrected.mean(), 3),
                f"{some.sampling_ratio.median():.1f}",
                f"{some.sampling_many_ratio.median():.1f}",
            )
        )
    columns = (
        "method",
        "tasks",
        "seeds",
        "CPU s",
        "networks / pool / following, s",
        "ratio, median",
        "ratio, largest",
        "gain, flow",
        "gain, corrected",
        "C2ST, flow",
        "C2ST, corrected",
        "ratio of 10,000 samples",
        "ratio of 20 samples for 500 x",
    )
    return table(columns, lines)


def _tasks(rows: pd.DataFrame) -> str:
    """Return the table of JNPE at default options, task by task."""
    lines = []
    joined = _joined(rows[rows.method.isin(("jnpe", REFERENCE))])
    for task, some in joined[joined.method == "jnpe"].groupby("task", sort=False):
        lines.append(
            (
                task,
                f"{some.seconds_npe.mean():.0f}",
                f"{some.seconds.mean():.0f}",
                f"{some.ratio.mean():.1f}",
                *(_number(some[c].mean()) for c in ("nll_npe", "nll", "nll_corrected")),
                *(
                    _number(some[c].mean(), 3)
                    for c in ("c2st_npe", "c2st", "c2st_corrected")
                ),
            )
        )
    columns = (
        "task",
        "NPE, CPU s",
        "JNPE, CPU s",
        "ratio",
        "test NLL of NPE",
        "flow",
        "corrected",
        "C2ST of NPE",
        "flow",
        "corrected",
    )
    return table(columns, lines)


def _number(value: float, digits: int = 2) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def figure(rows: pd.DataFrame) -> Figure:
    """Return mean gains against median CPU seconds, a panel for each budget."""
    joined = _joined(rows)
    budgets = sorted(set(joined.num_simulations))
    with panels(len(budgets), 4.0, 3.2, columns=len(budgets)) as (result, axes):
        for axis, num in zip(axes, budgets, strict=True):
            some = joined[joined.num_simulations == num]
            means = some.groupby("method", sort=False).agg(
                seconds=("seconds", "median"),
                gain=("gain", "mean"),
                corrected=("gain_corrected", "mean"),
            )
            npe = means[means.index.isin(NPE)]
            ours = means[means.index.str.match(r"jnpe(_\d+)?$")].sort_values("seconds")
            axis.plot(npe.seconds, npe.gain, "o", color=GREY, label="NPE")
            for column, name, label in (
                ("gain", "flow", "JNPE, flow"),
                ("corrected", "energy", "JNPE, corrected"),
            ):
                axis.plot(
                    ours.seconds, ours[column], "o-", color=color_of(name), label=label
                )
            for method, row in means.iterrows():
                axis.annotate(
                    method, (row.seconds, row.gain), fontsize=6, xytext=(3, -7),
                    textcoords="offset points",
                )  # fmt: skip
            axis.set(xscale="log", xlabel="CPU seconds", title=f"{num:,} simulations")
        axes[0].set_ylabel(f"gain in test NLL over {REFERENCE}, nats")
        axes[0].legend(fontsize=7)
    return result
