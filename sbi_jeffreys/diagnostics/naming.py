"""Names of parameters, for the columns of samples."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

ParameterNames: TypeAlias = Sequence[str] | Mapping[str, int | Sequence[int]] | None
Columns: TypeAlias = dict[str, int | list[int]]


def columns_of(parameter_names: ParameterNames, dim: int) -> Columns:
    """Return which columns of samples each variable has: one of a scalar, or several.

    Args:
        parameter_names: None for one vector, "theta"; D names of scalars; or a mapping
            from names to columns, an integer for a scalar and several for a vector.
        dim: D, the number of columns.

    Raises:
        ValueError: If there are not D names, each another; if columns are left out,
            taken twice or beyond the last; or if a name is arviz's own.
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
    """Return variables, shape `(...)` or `(..., d)`, of samples `(..., D)`."""
    return {name: theta[..., column] for name, column in columns.items()}
