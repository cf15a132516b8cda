"""The files of an installed sbibm: observations and reference posteriors."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def sbibm_file(*parts: str) -> Path:
    """Return the path of one of the files of a task of sbibm.

    sbibm itself is not imported, because it needs an old sbi.

    Args:
        parts: The task's folder, then the path of the file inside its folder `files`.

    Raises:
        ModuleNotFoundError: If sbibm is not installed.
        FileNotFoundError: If sbibm has no such file.
    """
    task, *rest = parts
    name = Path("sbibm", "tasks", task, "files", *rest)
    try:
        installed = files("sbibm") or []
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            f"sbibm's file `{name}` is needed. Install sbibm for its files: "
            "`pip install --no-deps sbibm==1.1.0`."
        ) from None
    for file in installed:
        if Path(file) == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"Expected sbibm to have the file `{name}`, found none.")
