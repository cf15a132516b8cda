"""Check that a change of the code changes no number: compare with an earlier revision.

    python -m tests.unchanged REVISION [--tolerance 1e-5]

Runs the same seeded trainings with the earlier revision, which is installed in an
environment of its own, and with the present code. Both run on one machine, because
rounding differs between processors. Prints the largest difference in every group of
numbers. Where there is one, it also prints the paired difference of the held-out negative
log-likelihoods, in nats, with its standard error. The exit status is 1 if a number
differs by more than the tolerance (0, bit for bit, by default).

`--except pool` lets the groups whose name contains "pool" differ, for changes of the pool
that are judged by the paired comparison.
"""

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).parent / "record.py"
RENAMED = {"validation_flow_to_energy": "validation_kl_flow_energy"}
"""Entries of `summary` by their earlier name."""

REMOVED: set[str] = set()
"""Entries of `summary` that were removed since."""


def earlier_environment(revision: str, folder: Path) -> Path:
    """Return the interpreter of an environment that has the revision installed."""
    commit = subprocess.run(
        ["git", "rev-parse", revision],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    target = folder / commit[:12]
    python = target / "bin" / "python"
    if not (target / "ready").exists():
        source = target / "source"
        source.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["git", "archive", commit], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True)
        venv.create(target, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        constraints = {"PIP_CONSTRAINT": str(source / "constraints.txt")}
        subprocess.run([*pip, source], env={**os.environ, **constraints}, check=True)
        (target / "ready").touch()
    return python


def record(pythons: Sequence[Path | str], folder: Path) -> list[dict[str, Any]]:
    """Return what the trainings give with each interpreter's version, side by side."""
    outputs = [folder / f"{i}.pt" for i in range(len(pythons))]
    runs = [
        subprocess.Popen([python, RECORD, output], cwd=folder)
        for python, output in zip(pythons, outputs, strict=True)
    ]
    if any([run.wait() for run in runs]):
        raise RuntimeError("A version could not be recorded: see above.")
    return [dict(flat(torch.load(output, weights_only=True))) for output in outputs]


def flat(results: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every array, with the names that lead to it."""
    if isinstance(results, dict):
        for name, values in results.items():
            yield from flat(values, (*path, RENAMED.get(name, name)))
    elif path[-1] not in REMOVED:
        yield ": ".join(path), results


def difference(before: Any, now: Any) -> float:
    """Return the largest absolute difference, infinite where shapes differ."""
    if isinstance(before, list):
        return 0.0 if before == now else float("inf")
    if before.shape != now.shape:
        return float("inf")
    same = (before == now) | (before.isnan() & now.isnan())
    return float(torch.where(same, 0.0, (before.double() - now.double()).abs()).max())


def main() -> int:
    """Compare, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.unchanged")
    parser.add_argument("revision", help="the earlier commit")
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--except", dest="free", nargs="*", default=[], metavar="TEXT")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "unchanged")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = earlier_environment(arguments.revision, folder)
    before, now = record([python, sys.executable], folder)
    failed = sorted(before.keys() ^ now.keys())
    for name in failed:
        print(f"only {'before' if name in before else 'now'}: {name}")
    for name in (name for name in before if name in now):
        largest = difference(before[name], now[name])
        is_free = any(text in name for text in arguments.free)
        note = "differs" if largest else "equal"
        if largest > arguments.tolerance and not is_free:
            failed.append(name)
            note = "FAILS"
        if name.endswith(": nll") and largest:
            gain = before[name] - now[name]
            error = gain.std() / len(gain) ** 0.5
            note += f" paired gain {gain.mean():.4f} ± {error:.4f} nats"
        print(f"{name:60} {largest:10.3g}  {note}")
    print(f"{len(before)} groups of numbers, {len(failed)} fail")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
