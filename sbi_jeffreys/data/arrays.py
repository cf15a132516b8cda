"""Simulations as they are given: tensors or arrays, in memory or on disk."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_ROWS = 100_000
"""Most rows in memory at a time. They are enough for accurate statistics."""

MAX_ENTRIES = 2**24
"""Most numbers in memory at a time, but at least 1,000 rows."""


def as_tensor(name: str, values: Any) -> Tensor:
    """Return a tensor of real numbers, which shares memory or a file if it can.

    Args:
        name: The argument's name, for errors.
        values: A tensor, which is detached, or a NumPy array, `(N, ...)`. Float32 and
            float64 are shared. If an array has masked entries, the result is a copy in
            which they are NaN.

    Raises:
        TypeError: If `values` is neither, if it has no real numbers, or if it is
            memory-mapped and not float32.
    """
    if isinstance(values, Tensor):
        if values.dtype == torch.bool or values.is_complex():
            raise TypeError(_not_real(name, values.dtype))
        return values.detach()
    if not isinstance(values, np.ndarray):
        raise TypeError(
            f"Expected `{name}` to be a tensor or a NumPy array, which may be "
            f"memory-mapped, got {type(values).__module__}.{type(values).__name__}. "
            "`numpy.asarray` makes an array of it, if it has numbers."
        )
    if values.dtype.kind not in "fiu":
        raise TypeError(_not_real(name, values.dtype))
    if values.dtype != np.float32 and isinstance(values, np.memmap):
        raise TypeError(
            f"Expected a memory-mapped `{name}` of dtype float32, got {values.dtype}, "
            "which would need a copy in memory. Store float32, or pass "
            "`.astype('float32')`, which is such a copy."
        )
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if isinstance(values, np.ma.MaskedArray):
        values = values.filled(np.nan)
    if min(values.strides, default=0) < 0:  # torch has no such views
        values = values.copy()
    with warnings.catch_warnings():  # nothing here writes to simulations
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)


def _not_real(name: str, dtype: Any) -> str:
    return (
        f"Expected `{name}` of real numbers, got {dtype}. Convert it to float32, if its "
        "values can be numbers."
    )


def rows_at_once(values: Tensor) -> int:
    """Return how many rows of `values`, shape `(N, ...)`, to process at a time."""
    long_rows = MAX_ENTRIES // max(1, values.shape[1:].numel())
    return min(MAX_ROWS, max(1_000, long_rows))


def evenly_spaced(*parts: Tensor) -> list[Tensor]:
    """Return evenly spaced rows of tensors `(N_i, ...)` as views; all if they are few.

    The spacing is the same in all parts, so that each keeps its share.
    """
    step = max(1, -(-sum(map(len, parts)) // rows_at_once(parts[0])))
    return [part[::step] for part in parts]


def is_finite(values: Tensor) -> bool:
    """Return whether no entry of `values`, `(N, ...)`, is NaN or infinite."""
    chunks = values.split(rows_at_once(values))
    return all(bool(chunk.isfinite().all()) for chunk in chunks)


def check_finite(what: str, rows: Tensor) -> None:
    """Raise a ValueError if some rows have entries that are NaN or infinite.

    Args:
        what: What the rows are, for the error.
        rows: Shape `(N, ...)`.
    """
    if is_finite(rows):
        return
    bad = sum(
        int((~chunk.isfinite().reshape(len(chunk), -1).all(-1)).sum())
        for chunk in rows.split(rows_at_once(rows))
    )
    raise ValueError(
        f"Expected finite {what}, but {bad} of {len(rows)} have NaN or infinite entries."
    )


class ConcatenatedRows:
    """Several tensors, indexed as if they were concatenated.

    On the CPU rows are gathered from each part. On a GPU the parts are concatenated, as
    the search for rows in each part would wait for the device.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """
        Args:
            parts: Tensors `(N_i, ...)` that differ in N_i only.
        """
        self.device = parts[0].device
        self.parts = parts if self.device.type == "cpu" else [torch.cat(list(parts))]

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the rows at `indices`, shape `(batch,)`, as `(batch, ...)`."""
        first, *others = self.parts
        if not others:
            return first[indices]
        rows = first.new_empty((len(indices), *first.shape[1:]))
        start = 0
        for part in self.parts:
            here = (indices >= start) & (indices < start + len(part))
            rows[here] = part[indices[here] - start]
            start += len(part)
        return rows
