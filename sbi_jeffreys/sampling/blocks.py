"""Blocks of draws and observations, so that memory stays bounded."""

from collections.abc import Iterator

from tqdm.auto import tqdm


def check_block_size(size: int) -> None:
    """Raise a ValueError if `size`, the most draws at a time, is less than 1."""
    if size < 1:
        raise ValueError(
            f"Expected `max_sampling_batch_size` to be at least 1, got {size}."
        )


def blocks(num: int, batch: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Split `num` draws for each of `batch` observations into blocks of at most `size`.

    Returns:
        A slice of the draws and a slice of the observations for each block. All draws
        for some observations come before those for the next ones.

    Raises:
        ValueError: If `size` is less than 1.
    """
    check_block_size(size)
    height = max(1, min(num, size))
    width = size // height
    for column in range(0, batch, width):
        for row in range(0, num, height):
            yield slice(row, row + height), slice(column, column + width)


def progress_bar(num: int, batch: int, show: bool) -> tqdm:
    """Return a bar that counts `num` samples for each of `batch` observations."""
    return tqdm(
        total=num * batch,
        desc=f"Drawing {num} samples for each of {batch} observations",
        disable=not show,
    )
