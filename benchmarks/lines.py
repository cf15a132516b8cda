"""Lines of CSV files: appended by several processes at a time, and read with care.

A line is complete with its newline. The rest of a line that was cut short, by a full disk
or a kill, is left out by `read` and removed by `append`.
"""

import csv
import fcntl
import os
import warnings
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd


def append(path: Path, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Add a line to a file, which is made with a header if it does not exist.

    Args:
        path: Path of the file, in a folder that exists.
        row: Entries by column. Those that are missing are empty.
        columns: Names of the columns.

    Raises:
        ValueError: If the file has other columns.
        OSError: If the line can't be written whole.
    """
    line = pd.DataFrame([row], columns=list(columns)).to_csv(header=False, index=False)
    header = ",".join(columns) + "\n"
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        file.seek(0)
        content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        if complete and complete.splitlines()[0].decode() != header.strip():
            raise ValueError(
                f"Expected {path} to have the columns {header.strip()}, got "
                f"{complete.splitlines()[0].decode()}. The file is of another version."
            )
        file.truncate(len(complete))
        file.write((line if complete else header + line).encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, **options: Any) -> pd.DataFrame:
    """Return the complete lines of a file, or none if there is no file.

    Args:
        path: Path of the file.
        options: Arguments of `pandas.read_csv`.

    Raises:
        ValueError: If a line has more or fewer entries than the header, or is a second
            header. The message has the file and the line.
    """
    content = path.read_bytes().decode() if path.exists() else ""
    end = content.rfind("\n") + 1
    if content[end:]:
        warnings.warn(
            f"{path}: the last line, {content[:end].count(chr(10)) + 1}, is incomplete "
            f"and left out: {content[end:][:80]!r}.",
            stacklevel=2,
        )
    if not end:
        return pd.DataFrame()
    lines = csv.reader(StringIO(content[:end]))
    header = next(lines)
    for entries in lines:
        if len(entries) != len(header) or entries == header:
            raise ValueError(
                f"{path}, line {lines.line_num}: expected {len(header)} entries, got "
                f"{'a second header' if entries == header else len(entries)}. Remove it, "
                "or delete the file."
            )
    return pd.read_csv(StringIO(content[:end]), **options)
