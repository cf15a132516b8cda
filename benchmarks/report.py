"""Tables in Markdown, and the versions and machine that measured them."""

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"|{'|'.join(f' {cell} ' for cell in line)}|" for line in lines)


def section(title: str, note: str, body: str) -> str:
    """Return a section in Markdown: its title, what was measured, and a table."""
    return f"## {title}\n\n{note}\n\n{body}"


def spread(values: pd.Series, digits: int) -> str:
    """Return the mean in words and, for several values, ± their standard deviation."""
    deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


def words(values: Iterable[Any]) -> str:
    """Return the different values in order, in words."""
    return " ".join(map(str, sorted(set(values))))


def measured_with(device: str) -> str:
    """Return versions, machine and threads, in words."""
    return (
        f"sbi {version('sbi')}, torch {torch.__version__}, nflows {version('nflows')}, "
        f"Python {platform.python_version()}, {_machine()}, "
        f"{torch.get_num_threads()} threads, device {_device(device)}"
    )


@cache
def commit() -> str:
    """Return the commit of the code as this process first saw it.

    It ends with a star if files differ from it.
    """
    arguments = ["git", "describe", "--always", "--dirty=*", "--exclude=*"]
    folder = Path(__file__).parent
    result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    return result.stdout.strip()


def made_by(rows: pd.DataFrame) -> str:
    """Return the commit of all rows and what measured them, as a sentence.

    Raises:
        ValueError: If the rows are of several commits.
    """
    commits = set(rows.commit)
    if len(commits) > 1:
        raise ValueError(f"Expected rows of one commit, got {words(commits)}.")
    return f"Commit {words(commits)}; {rows.measured_with.iloc[-1]}."


def write(path: Path, text: str) -> None:
    """Write a report. Its folder is made if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def write_with_figure(folder: Path, name: str, text: str, figure: Figure) -> None:
    """Write a report and its figure under one name."""
    write(folder / f"{name}.md", text)
    figure.savefig(folder / f"{name}.png", dpi=120)


def _machine() -> str:
    names = []
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return " ".join([platform.machine(), *names[:1], f"with {os.cpu_count()} cores"])


def _device(device: str) -> str:
    if torch.device(device).type != "cuda":
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"
