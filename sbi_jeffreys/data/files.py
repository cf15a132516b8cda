"""Files that are written whole, or not at all, and sealed with a digest."""

import os
from hashlib import sha256
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Write a file whole, or not at all.

    Args:
        file: Its path. A file that is there is replaced.
        content: What it will have.

    Raises:
        OSError: If it can't be written. What was there before is still there.
    """
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def write_sealed(file: Path, title: str, content: bytes) -> None:
    """Write a title and a digest of the content in a line, then the content, whole.

    Args:
        file: Its path. A file that is there is replaced.
        title: What kind of file it is.
        content: What it will have.

    Raises:
        OSError: If it can't be written. What was there before is still there.
    """
    write_whole(file, _seal(title, content) + content)


def read_sealed(file: Path, title: str) -> bytes:
    """Return what `write_sealed` wrote.

    Args:
        file: Its path.
        title: What kind of file is expected.

    Raises:
        ValueError: If the file is of another kind, or damaged.
    """
    line, newline, content = file.read_bytes().partition(b"\n")
    if not line.startswith(title.encode()):
        raise ValueError(f"Expected {file} to be a {title}, as this version writes it.")
    if line + newline != _seal(title, content):
        raise ValueError(
            f"{file} is damaged: its content is not what was written. Delete it to make "
            "it anew."
        )
    return content


def _seal(title: str, content: bytes) -> bytes:
    return f"{title} {sha256(content).hexdigest()}\n".encode()
