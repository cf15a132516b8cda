"""The page of the command `stress`."""

import pandas as pd

from benchmarks.report import made_by, table

KINDS = ("prior", "simulator")


def report(rows: pd.DataFrame) -> str:
    """Return the page in Markdown.

    Args:
        rows: Trainings, as `trainings.Row` has them.
    """
    wrong = rows[~rows.outcome.isin(["fine", "said"])]
    sections = [
        "# Short trainings on data of many kinds",
        f"{len(rows)} trainings of ten epochs, each with 20 to 2,000 simulations and a "
        "learning rate of 0.0001 to 0.05. Both posteriors are sampled given five fresh "
        "x. A training that diverged and said when and where counts as said.",
        made_by(rows),
        *(_counts(rows, kind) for kind in KINDS),
    ]
    if len(wrong):
        columns = ("seed", *KINDS, "num_simulations", "learning_rate", "outcome")
        sections += ["## What went wrong", table(columns, wrong[list(columns)].values)]
    return "\n\n".join(sections)


def _counts(rows: pd.DataFrame, kind: str) -> str:
    lines = [(name, *_outcomes(some)) for name, some in rows.groupby(kind)]
    lines.append(("all", *_outcomes(rows)))
    return table((kind, "trainings", "fine", "said", "wrong"), lines)


def _outcomes(rows: pd.DataFrame) -> tuple[int, int, int, int]:
    fine, said = (int((rows.outcome == outcome).sum()) for outcome in ("fine", "said"))
    return len(rows), fine, said, len(rows) - fine - said
