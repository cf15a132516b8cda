"""The comparison of sbibm, between a flow fitted by maximum likelihood and ours."""

import pandas as pd

from benchmarks.accuracy.cells import Cell, cells
from benchmarks.accuracy.published import BARS
from benchmarks.accuracy.standings import LABELS, with_any_folds
from benchmarks.report import spread, table
from benchmarks.tasks.references import NUM_OBSERVATIONS

METHODS = {
    method: LABELS[method]
    for method in ("npe_nsf", "jnpe_flow", "jnpe_corrected", "jnpe_networks")
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
