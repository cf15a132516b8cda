"""Rows of a CSV file, one for each key. Rows in the file are not computed again."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from benchmarks import lines
from benchmarks.report import commit, measured_with, words


def finish(
    compute: Callable[..., NamedTuple],
    keys: Iterable[tuple[Any, ...]],
    path: Path,
    jobs: int,
    columns: Sequence[str],
) -> pd.DataFrame:
    """Compute the rows that are missing, and return those of the keys.

    The column `measured_with` has the versions and the machine that computed a row.

    Args:
        compute: Function of the parts of a key. It runs in a process of one thread and
            returns a row that starts with these parts.
        keys: Keys of the rows wanted.
        path: Path of the CSV file, which need not exist.
        jobs: Number of processes.
        columns: Names of a row's entries.

    Raises:
        ValueError: If the file has other columns, or if it has rows of another commit and
            some are missing. This is found before any work is done.
    """
    keys = [tuple(key) for key in keys]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = read(path), (*columns, "measured_with")
    if len(rows.columns) and list(rows.columns) != list(columns):
        raise ValueError(
            f"Expected {path} to have the columns {', '.join(columns)}, got "
            f"{', '.join(rows.columns)}. The file is of another version."
        )
    done = set(_keys(rows, len(keys[0])))
    todo = [key for key in keys if key not in done]
    if todo and "commit" in rows:
        check_commit(rows, path)
    work = Parallel(jobs, return_as="generator_unordered")(
        delayed(_compute)(compute, key) for key in todo
    )
    for row in tqdm(work, total=len(todo), desc=path.stem, unit=" rows"):
        lines.append(path, row, columns)
    rows = read(path)
    wanted = set(keys)
    return rows[[key in wanted for key in _keys(rows, len(keys[0]))]]


def check_commit(rows: pd.DataFrame, path: Path) -> None:
    """Raise a ValueError if rows of a file are of another commit than this code."""
    if others := set(rows.commit) - {commit()}:
        raise ValueError(
            f"Expected rows of commit {commit()}, which this code is, got those of "
            f"{words(others)} in {path}. Give another `--output`, or check that one out."
        )


def curve(values: Iterable[float]) -> str:
    """Return numbers with six digits as an entry of a row."""
    return json.dumps([float(f"{value:.6g}") for value in values])


def numbers(entry: str) -> list[float]:
    """Return the numbers of a `curve`."""
    return json.loads(entry)


def _compute(compute: Callable[..., NamedTuple], key: tuple[Any, ...]) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {**compute(*key)._asdict(), "measured_with": measured_with("cpu")}


def read(path: Path) -> pd.DataFrame:
    """Return the rows of a file, or none. A commit is text even if all are digits."""
    return lines.read(path, dtype={"commit": str})


def _keys(rows: pd.DataFrame, num: int) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in rows.iloc[:, :num].itertuples(index=False, name=None)]
