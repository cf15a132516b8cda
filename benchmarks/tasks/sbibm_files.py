"""The files of an installed sbibm: observations, and reference posteriors."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def sbibm_file(*parts: str) -> Path:
    """Return the path of one of the files of a task of sbibm.

    sbibm itself, which needs an old sbi, is not imported.

    Args:
        parts: The task's folder, then what leads to the file from its `files`.

    Raises:
        ModuleNotFoundError: If sbibm is not installed.
        FileNotFoundError: If it has no such file.
    """
    task, *rest = parts
    name = Path("sbibm", "tasks", task, "files", *rest)
    try:
        installed = files("sbibm") or []
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            f"`{name}` is needed: `pip install --no-deps sbibm==1.1.0`."
        ) from None
    for file in installed:
        if Path(file) == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"Expected `{name}` among the files of sbibm.")
