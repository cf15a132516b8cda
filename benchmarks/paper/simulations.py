"""The comparison of sbibm, between a flow fitted by maximum likelihood and ours."""

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.accuracy.cells import Cell, cells
from benchmarks.accuracy.published import BARS
from benchmarks.accuracy.standings import with_any_folds
from benchmarks.report import spread, table
from benchmarks.tasks.references import NUM_OBSERVATIONS
from sbi_jeffreys.plots.style import color_of, panels

METHODS = {
    "npe_nsf": "NPE nsf",
    "jnpe_flow": "JNPE flow",
    "jnpe_corrected": "JNPE corrected",
    "jnpe_networks": "JNPE, networks alone",
}
TASKS = tuple(BARS)
CLASSIFIER = "rf_fold"


def wanted(seeds: list[int], num_simulations: int) -> list[Cell]:
    """Return the cells of sbibm's ten tasks and their ten observations."""
    observations = range(1, NUM_OBSERVATIONS + 1)
    return cells(TASKS, METHODS, [num_simulations], seeds, observations)


def report(rows: pd.DataFrame) -> str:
    """Return the table, in Markdown: C2ST and test NLL."""
    rows = with_any_folds(rows)
    lines, better = [], 0
    for task in TASKS:
        of_task = rows[rows.task == task]
        if of_task.empty:
            continue
        scores, losses = (
            of_task.groupby(["method", "seed"])[column].mean()
            for column in ("c2st_rf", "nll")
        )
        better += losses["jnpe_flow"].mean() < losses["npe_nsf"].mean()
        lines.append(
            (
                task,
                *(spread(scores[method], 3) for method in METHODS),
                *(spread(losses[method], 2) for method in METHODS),
            )
        )
    (num,) = set(rows.num_simulations)
    columns = [f"{what}, {name}" for what in ("C2ST", "NLL") for name in METHODS.values()]
    return "\n\n".join(
        [
            f"sbibm's tasks, {num:,} simulations, mean over ten observations, ± standard "
            "deviation over seeds. C2ST is the accuracy of sbi's random forest: 0.5 is "
            "perfect. Test NLL is in nats on fresh pairs. The paper's NF is sbi's NPE "
            "with nsf, which stops early.",
            "JNPE has two things that are not the paper's. Its energy is pooled with a "
            "linear model of the simulator, an exponential family and a synthetic "
            "likelihood, and the flow follows this pooled energy in the end. Our last "
            "column is the posterior corrected by the energy's networks alone, before "
            "pooling. JNPE also puts positive, skewed data on their log scale and scales "
            "down data that are unrelated to the parameters. This matters on "
            "lotka_volterra and slcp_distractors. `../ablations.md` has NPE's results on "
            "data prepared in this way.",
            f"By test NLL, our flow is better on {better} of {len(lines)} tasks.",
            table(("task", *columns), lines),
        ]
    )


def figure(rows: pd.DataFrame) -> Figure:
    """Return C2ST of the methods, task by task; points are seeds."""
    rows = with_any_folds(rows)
    tasks = [task for task in TASKS if task in set(rows.task)]
    with panels(1, 7.5, 3.2, columns=1) as (result, (axis,)):
        for k, (method, name) in enumerate(METHODS.items()):
            scores = rows[rows.method == method].groupby(["task", "seed"]).c2st_rf.mean()
            offset = 0.2 * (k - (len(METHODS) - 1) / 2)
            places = [tasks.index(task) + offset for task, _ in scores.index]
            axis.scatter(places, scores, s=16, color=color_of(method), label=name)
        axis.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
        axis.set(ylabel="C2ST (random forest)", ylim=(0.48, 1.02))
        axis.legend()
    return result
