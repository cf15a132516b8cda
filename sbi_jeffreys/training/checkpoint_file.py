"""A training on disk: written whole every so often, checked when it is read.

The file begins with a line of text that has the SHA-256 digest of the rest. The rest is
read by `torch.load(weights_only=True)`, which runs no code of the file.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from sbi_jeffreys.data.files import write_whole

TITLE = b"sbi_jeffreys checkpoint 1 "
"""How the first line begins. The number is that of the format."""

INTERVAL = 30.0
"""Seconds between two writes within a cycle of the learning rates."""


class CheckpointFile:
    """The file of one call of `train`."""

    def __init__(self, path: str | Path, rows: Any, arguments: Mapping[str, Any]) -> None:
        """
        Args:
            path: Path of the file, whose folder exists.
            rows: Rows of the simulations to train on, and held-out ones.
            arguments: What has to be the same to go on: numbers and strings by name.
        """
        self.path, self.rows = Path(path), rows
        self.arguments = dict(arguments)
        self._written = time.monotonic()

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
        body = content.getvalue()
        title = TITLE + sha256(body).hexdigest().encode() + b"\n"
        try:
            write_whole(self.path, title + body)
        except OSError as error:
            warnings.warn(
                f"The checkpoint {self.path} could not be written, and is as it was "
                f"before: {error}.",
                stacklevel=2,
            )
        self._written = time.monotonic()


def read_checkpoint(path: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows and the state of the training in a file, on the CPU.

    Args:
        path: Path of the file.
        arguments: What has to be the same as when it was written.

    Raises:
        ValueError: If the file is no checkpoint, is damaged, or is of another training.
    """
    title, _, body = path.read_bytes().partition(b"\n")
    if not title.startswith(TITLE):
        raise ValueError(f"Expected `checkpoint` to be one of this version, got {path}.")
    if title != TITLE + sha256(body).hexdigest().encode():
        raise ValueError(
            f"The checkpoint {path} is damaged: its content is not what was written. "
            "Delete it to train anew."
        )
    content = torch.load(BytesIO(body), map_location="cpu", weights_only=True)
    for name, value in arguments.items():
        if content["arguments"].get(name) != value:
            raise ValueError(
                f"The checkpoint {path} is of another training: `{name}` is {value}, and "
                f"was {content['arguments'].get(name)}. Give the same, or another path."
            )
    return content
