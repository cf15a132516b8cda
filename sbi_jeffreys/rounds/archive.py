"""Rounds on disk: each file is written once, whole, and nothing is ever overwritten.

The folder has

- `arguments.json`: the arguments of the run, which have to be the same to continue;
- `round_00/theta.npz`: the parameters of the round, and the density that they were drawn
  from, before any of them is simulated;
- `round_00/batch_00000.npz`: `theta`, `x` and `status` of a finished batch;
- `round_00/record.json`: what the training after the round gave.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from sbi_jeffreys.data.files import write_whole
from sbi_jeffreys.rounds.simulator import Batch

CHANGEABLE = ("x_o", "shape of x_o", "training")
"""Arguments that may change as long as nothing was trained."""


class Archive:
    """Keeps the simulations of a run in a folder, or in memory if there is none."""

    def __init__(self, path: str | Path | None, arguments: Mapping[str, Any]) -> None:
        """
        Args:
            path: The folder, which is made if it does not exist; None for memory.
            arguments: What the run depends on; numbers and strings.

        Raises:
            ValueError: If the folder has another run.
        """
        self.path = None if path is None else Path(path)
        self._batches: dict[int, dict[int, Batch]] = {}
        self._proposals: dict[int, dict[str, np.ndarray]] = {}
        self._records: dict[int, dict[str, Any]] = {}
        if self.path is not None:
            self._open(self.path, arguments)

    def _open(self, path: Path, arguments: Mapping[str, Any]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        file = path / "arguments.json"
        if not file.exists():
            names = [other.name for other in path.iterdir()]
            if any(not (n.startswith(".") or n.endswith(".part")) for n in names):
                raise ValueError(
                    f"Expected `path` to be a new folder, or that of a run, but {path} "
                    "has other files."
                )
            write_whole(file, json.dumps(arguments, indent=1).encode())
        if not any(path.glob("round_*/record.json")):
            # The first round is from the prior, whatever these are.
            kept = json.loads(file.read_text())
            kept |= {name: arguments[name] for name in CHANGEABLE if name in arguments}
            write_whole(file, json.dumps(kept, indent=1).encode())
        earlier = json.loads(file.read_text())
        now = json.loads(json.dumps(arguments))
        for name in sorted(earlier.keys() | now.keys()):
            if earlier.get(name) != now.get(name):
                raise ValueError(
                    f"Expected the arguments of the run in {path}, but `{name}` is "
                    f"{now.get(name)} and was {earlier.get(name)}. Give the same, or "
                    "another `path`."
                )
        for folder in sorted(path.glob("round_*")):
            number = int(folder.name.removeprefix("round_"))
            if (folder / "theta.npz").exists():
                self._proposals[number] = _read(folder / "theta.npz")
            batches = self._batches[number] = {}
            for npz in sorted(folder.glob("batch_*.npz")):
                values = _read(npz)
                which = int(npz.stem.removeprefix("batch_"))
                error = str(values.pop("error"))
                batches[which] = Batch(which, **values, error=error)
            if (folder / "record.json").exists():
                self._records[number] = json.loads((folder / "record.json").read_text())

    def proposal(self, number: int) -> dict[str, np.ndarray] | None:
        """Return the parameters of a round, "theta", and its density; None before."""
        return self._proposals.get(number)

    def add_proposal(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep the parameters of a round and the arrays of its density."""
        self._proposals[number] = arrays
        self._save_npz(number, "theta.npz", arrays)

    def batches(self, number: int) -> dict[int, Batch]:
        """Return the finished batches of a round, by number."""
        return self._batches.setdefault(number, {})

    def add_batch(self, number: int, batch: Batch) -> None:
        """Keep a finished batch of a round."""
        self.batches(number)[batch.number] = batch
        arrays = {**batch._asdict(), "error": np.array(batch.error)}
        del arrays["number"]
        self._save_npz(number, f"batch_{batch.number:05}.npz", arrays)

    def record(self, number: int) -> dict[str, Any] | None:
        """Return what the training after a round gave, or None before."""
        return self._records.get(number)

    def add_record(self, number: int, record: dict[str, Any]) -> None:
        """Keep what the training after a round gave."""
        self._records[number] = record
        if self.path is not None:
            text = json.dumps(record, indent=1)
            write_whole(self._folder(self.path, number) / "record.json", text.encode())

    def _save_npz(self, number: int, name: str, arrays: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        content = BytesIO()
        np.savez(content, **arrays)
        write_whole(self._folder(self.path, number) / name, content.getvalue())

    @staticmethod
    def _folder(path: Path, number: int) -> Path:
        folder = path / f"round_{number:02}"
        folder.mkdir(exist_ok=True)
        return folder


def _read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)
