"""Files that are written whole, or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Write a file whole, or not at all.

    Args:
        file: Its path. A file that is there is replaced.
        content: What it will have.

    Raises:
        OSError: If it can't be written. What was there before is still there.
    """
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
