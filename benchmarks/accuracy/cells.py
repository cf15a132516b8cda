"""A benchmark in cells, one for each task, method, budget, seed and observation.

Each finished cell is a line of a CSV file, and each training is a file beside it. A run
that was interrupted continues, and nothing finished is computed again. Cells carry the
commit of their training, and those of several commits are not mixed.
"""

import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from benchmarks import lines
from benchmarks.accuracy.c2st import (
    c2st_mlp,
    c2st_mlp_fold,
    c2st_random_forest,
    c2st_random_forest_fold,
)
from benchmarks.accuracy.held_out import NUM_TEST_PAIRS, TEST_SEED
from benchmarks.methods.registry import METHODS, TRAININGS
from benchmarks.methods.training import Fit
from benchmarks.report import commit, measured_with
from benchmarks.rows import check_commit
from benchmarks.tasks.references import NUM_SAMPLES, reference
from benchmarks.tasks.sbibm import TASKS
from sbi_jeffreys.data.files import read_sealed, write_sealed

CLASSIFIERS = {
    "rf": c2st_random_forest,
    "rf_fold": c2st_random_forest_fold,
    "mlp": c2st_mlp,
    "mlp_fold": c2st_mlp_fold,
}
FINER = {"rf_fold": "rf", "mlp_fold": "mlp"}
"""The classifier on all folds, whose value is used in place of one fold's."""


class Cell(NamedTuple):
    """One measurement: a method's posterior given one observation of a task."""

    task: str
    method: str
    num_simulations: int
    seed: int
    observation: int


class Unit(NamedTuple):
    """One training. It serves the cells of all observations and of all its methods."""

    task: str
    training: str
    num_simulations: int
    seed: int


class TrainedFit(NamedTuple):
    """A fit, and what it was made by.

    Attributes:
        fit: Posterior, test NLL and cost.
        commit: Of the code that trained.
        measured_with: Versions, machine and device of the training.
    """

    fit: Fit
    commit: str
    measured_with: str


TITLE = "fit of a benchmark 3"
"""How files of trained posteriors begin; the number is that of their format."""

FIT_COLUMNS = ("nll", "epochs", "training_seconds")
COLUMNS = (
    *Cell._fields,
    *(f"c2st_{name}" for name in CLASSIFIERS),
    *FIT_COLUMNS,
    "sampling_seconds",
    "commit",
    "measured_with",
)


def cells(
    tasks: Iterable[str],
    methods: Iterable[str],
    budgets: Iterable[int],
    seeds: Iterable[int],
    observations: Iterable[int],
) -> list[Cell]:
    """Return the cells of a grid, seed by seed, so that a run cut short has all tasks."""
    grid = product(seeds, budgets, tasks, methods, observations)
    return [Cell(task, method, num, seed, o) for seed, num, task, method, o in grid]


def read(paths: Iterable[Path]) -> pd.DataFrame:
    """Return finished cells, one a row. Of a value measured twice, the last is kept.

    The commit of cells that were finished before files had one is "unknown".

    Args:
        paths: Paths of CSV files, which need not exist.
    """
    files = [file for p in paths if len(file := lines.read(p, dtype={"commit": str}))]
    if not files:
        return pd.DataFrame(columns=list(COLUMNS))
    found = pd.concat(files).reindex(columns=list(COLUMNS))
    found["commit"] = found.commit.astype(object).fillna("unknown")
    return found.groupby(list(Cell._fields), as_index=False, sort=False).last()


def missing(
    wanted: Sequence[Cell], finished: pd.DataFrame, classifiers: Sequence[str]
) -> dict[Cell, list[str]]:
    """Return the unfinished cells, with the classifiers that each lacks."""
    key = list(Cell._fields)
    measured = {}
    for name in classifiers:
        columns = [f"c2st_{name}", f"c2st_{FINER.get(name, name)}"]
        rows = finished.dropna(subset=columns, how="all")
        measured[name] = set(map(Cell._make, rows[key].to_numpy()))
    lacking = {
        cell: [name for name in classifiers if cell not in measured[name]]
        for cell in wanted
    }
    return {cell: names for cell, names in lacking.items() if names}


def run(
    wanted: Sequence[Cell],
    classifiers: Sequence[str],
    folder: Path,
    jobs: int,
    device: str = "cpu",
) -> int:
    """Compute the cells that are missing, and return how many failed.

    Args:
        wanted: Cells to have in the end.
        classifiers: Names from `CLASSIFIERS`.
        folder: Folder for `cells.csv` and the trained posteriors.
        jobs: Number of processes, with one thread each.
        device: Device that JNPE trains on. Everything else is done on the CPU.

    Raises:
        ModuleNotFoundError: If a task needs sbibm, before any work is done.
        ValueError: If the folder has cells of another commit, and some are missing. This
            is found before any work is done.
    """
    for task, observation in {(cell.task, cell.observation) for cell in wanted}:
        reference(TASKS[task], observation)
        TASKS[task].simulate(1, 0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cells.csv"
    finished = read([path])
    todo = missing(wanted, finished, classifiers)
    if todo:
        check_commit(finished, path)
    units: dict[Unit, dict[Cell, list[str]]] = {}
    for cell, names in todo.items():
        unit = Unit(cell.task, METHODS[cell.method], cell.num_simulations, cell.seed)
        units.setdefault(unit, {})[cell] = names
    failed = 0
    work = Parallel(jobs, return_as="generator_unordered")(
        delayed(_work)(unit, of_unit, folder, device) for unit, of_unit in units.items()
    )
    with tqdm(total=len(todo), unit=" cells", desc="Benchmark") as bar:
        for unit, num, errors in work:
            bar.update(num)
            bar.set_postfix_str(f"{unit.task}, {unit.training}, seed {unit.seed}")
            for error in errors:
                tqdm.write(error, file=sys.stderr)
            failed += len(errors)
    return failed


def _work(
    unit: Unit, todo: dict[Cell, list[str]], folder: Path, device: str
) -> tuple[Unit, int, list[str]]:
    """Train if necessary, finish the cells, and return their number and errors."""
    torch.set_num_threads(1)
    errors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as those of rejected samples
        try:
            fits = _trained(unit, folder, device)
        except Exception:
            return unit, len(todo), [f"{unit} failed.\n{traceback.format_exc()}"]
        for cell, classifiers in todo.items():
            try:
                row = _measure(fits[cell.method], cell, classifiers)
            except Exception:
                errors.append(f"{cell} failed.\n{traceback.format_exc()}")
                continue
            lines.append(folder / "cells.csv", row, COLUMNS)
    return unit, len(todo), errors


def _trained(unit: Unit, folder: Path, device: str) -> dict[str, TrainedFit]:
    """Return the fits of a unit, from a file or by training."""
    path = folder / "trained" / f"{'-'.join(map(str, unit))}.pt"
    if path.exists():
        try:
            content = read_sealed(path, TITLE)
            kept = torch.load(BytesIO(content), weights_only=False)
            if all(fit.commit == commit() for fit in kept.values()):
                return kept
            print(f"{path} is of another commit. It is trained again.", file=sys.stderr)
        except ValueError as error:
            print(f"{error} It is trained again.", file=sys.stderr)
    task, training = TASKS[unit.task], TRAININGS[unit.training].on(device)
    theta, x = task.simulate(unit.num_simulations, unit.seed)
    test = task.simulate(NUM_TEST_PAIRS, TEST_SEED)
    fits = training.fit(task.prior, theta, x, test, unit.seed)
    made_by = commit(), measured_with(training.device)
    trained = {
        method: TrainedFit(fit, *made_by)
        for method, fit in zip(training.methods, fits, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = BytesIO()
    torch.save(trained, saved)
    write_sealed(path, TITLE, saved.getvalue())
    return trained


def _measure(trained: TrainedFit, cell: Cell, classifiers: list[str]) -> dict[str, Any]:
    """Return the row of a cell."""
    x_o, samples = reference(TASKS[cell.task], cell.observation)[1:]
    torch.manual_seed(zlib.crc32(repr(cell).encode()))
    start = time.perf_counter()
    drawn = trained.fit.posterior.sample((NUM_SAMPLES,), x=x_o, show_progress_bars=False)
    seconds = time.perf_counter() - start
    return {
        **cell._asdict(),
        **{f"c2st_{name}": CLASSIFIERS[name](samples, drawn) for name in classifiers},
        **{name: getattr(trained.fit, name) for name in FIT_COLUMNS},
        "sampling_seconds": seconds,
        "commit": trained.commit,
        "measured_with": trained.measured_with,
    }
