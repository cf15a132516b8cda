"""A training on disk: written whole every so often, checked when it is read.

The file begins with a line of text that has the SHA-256 digest of the rest. The rest is
read by `torch.load(weights_only=True)`, which runs no code of the file.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbi_jeffreys.data.files import read_sealed, write_sealed
from sbi_jeffreys.data.processes import num_processes

TITLE = "checkpoint of sbi_jeffreys 2"
"""How the first line begins. The number is that of the format."""

INTERVAL = 30.0
"""Seconds between two writes within a cycle of the learning rates."""


class Kept(NamedTuple):
    """What a file has.

    Attributes:
        rows: Rows of the simulations to train on, and held-out ones.
        training: The state of the training, on the CPU.
    """

    rows: tuple[Tensor, Tensor]
    training: dict[str, Any]


class CheckpointFile:
    """The file of one call of `train`.

    Attributes:
        path: Path of the file.
        arguments: What has to be the same to go on, by name.
        rows: Rows of the simulations to train on, and held-out ones.
    """

    def __init__(self, path: Path, arguments: Mapping[str, Any]) -> None:
        """
        Args:
            path: Path of the file.
            arguments: What has to be the same to go on: numbers and strings, by name.

        Raises:
            ValueError: If there is no such folder, or several processes train together.
        """
        if num_processes() > 1:
            raise ValueError("Expected no `checkpoint` where several processes train.")
        if not path.parent.is_dir():
            raise ValueError(
                f"Expected `checkpoint` to be a path in a folder that exists, got {path}."
            )
        self.path, self.arguments = path, dict(arguments)
        self.rows: tuple[Tensor, Tensor] | None = None
        self._written = time.monotonic()

    def read(self) -> Kept | None:
        """Return what the file has, or None if there is no file.

        Raises:
            ValueError: If it is no checkpoint, is damaged, or is of another training.
        """
        if not self.path.exists():
            return None
        body = read_sealed(self.path, TITLE)
        content = torch.load(BytesIO(body), map_location="cpu", weights_only=True)
        for name, now in self.arguments.items():
            if (earlier := content["arguments"].get(name)) != now:
                raise ValueError(
                    f"The checkpoint {self.path} is of another training: its `{name}` is "
                    f"{earlier}, and now it is {now}. Give the same, or another path."
                )
        return Kept(content["rows"], content["training"])

    def offer(self, state: Callable[[], dict[str, Any]], at_once: bool) -> None:
        """Write the state of a training, if the last write was long ago.

        Args:
            state: Returns the state.
            at_once: Whether to write it in any case.
        """
        if at_once or time.monotonic() - self._written > INTERVAL:
            self.write(state())

    def write(self, state: dict[str, Any]) -> None:
        """Write the state of a training. Training goes on with a warning if it fails."""
        content = BytesIO()
        everything = {"arguments": self.arguments, "rows": self.rows, "training": state}
        torch.save(everything, content)
        try:
            write_sealed(self.path, TITLE, content.getvalue())
        except OSError as error:
            warnings.warn(
                f"The checkpoint {self.path} could not be written, and is as it was "
                f"before: {error}.",
                stacklevel=2,
            )
        self._written = time.monotonic()
