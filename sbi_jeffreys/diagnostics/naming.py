"""Names for the columns of samples."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

ParameterNames: TypeAlias = Sequence[str] | Mapping[str, int | Sequence[int]] | None
Columns: TypeAlias = dict[str, int | list[int]]


def columns_of(parameter_names: ParameterNames, dim: int) -> Columns:
    """Return the columns of each variable: an integer for a scalar, a list for a vector.

    Args:
        parameter_names: None gives one vector, "theta". D names give scalars. A mapping
            gives the columns of each name, as they are returned.
        dim: D, the number of columns.

    Raises:
        ValueError: If there are not D different names, if a mapping does not use each
            column once, or if arviz reserves a name.
    """
    if parameter_names is None:
        return {"theta": list(range(dim))}
    if isinstance(parameter_names, Mapping):
        columns: Columns = {
            name: value if isinstance(value, int) else list(value)
            for name, value in parameter_names.items()
        }
        taken = [
            column
            for value in columns.values()
            for column in ([value] if isinstance(value, int) else value)
        ]
        if sorted(taken) != list(range(dim)):
            raise ValueError(
                f"Expected `parameter_names` to take each of the columns 0 to {dim - 1} "
                f"once, got {dict(parameter_names)}."
            )
    else:
        columns = {name: i for i, name in enumerate(parameter_names)}
        if (
            isinstance(parameter_names, str)
            or len(columns) != dim
            or len(parameter_names) != dim
        ):
            raise ValueError(
                f"Expected {dim} different `parameter_names`, got {parameter_names!r}."
            )
    bad = [name for name in columns if name in ("chain", "draw") or not name]
    if bad:
        raise ValueError(f"Expected other `parameter_names` than {bad}.")
    return columns


def by_name(theta: np.ndarray, columns: Columns) -> dict[str, np.ndarray]:
    """Split samples `(..., D)` into variables of shape `(...)` or `(..., d)`."""
    return {name: theta[..., column] for name, column in columns.items()}
