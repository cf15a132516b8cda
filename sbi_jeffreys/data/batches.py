"""Batches of simulations, on the training device."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from math import inf
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.data.processes import mean_over_processes, num_processes, process_rank

AHEAD = 2
"""Streamed batches that are gathered in advance."""


class Batch(NamedTuple):
    """Parameters `(batch, D)`, simulations `(batch, ...)`, their weights `(batch,)`."""

    theta: Tensor
    x: Tensor
    weights: Tensor


CalibrationKernel = Callable[[Tensor], Tensor]
Fetched = tuple[Tensor, Tensor, Tensor, torch.cuda.Event | None]


class Batches(Protocol):
    """What the training loop asks of its data."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch of training."""

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch of training, in the order that `seed` gives."""

    def ordered(self) -> Iterator[Batch]:
        """Yield every pair once."""


class SlicedBatches:
    """Batches cut by index from tensors that stay where they are.

    If several processes train together, each gets its share of the rows of a batch.
    """

    def __init__(
        self,
        theta: Tensor | ConcatenatedRows,
        x: Tensor | ConcatenatedRows,
        indices: Tensor,
        batch_size: int,
        drop_last: bool,
        calibration_kernel: CalibrationKernel,
        device: torch.device | str,
        weights: Tensor | None = None,
    ) -> None:
        """
        Args:
            theta: Parameters, shape `(N, D)`.
            x: Their simulations, shape `(N, ...)`.
            indices: The rows that batches are made of, shape `(num,)`.
            batch_size: Pairs in a batch.
            drop_last: Whether to leave out a last batch that is smaller.
            calibration_kernel: Weights of simulations, from x to `(batch,)`.
            device: Where to deliver the batches.
            weights: Further weights, which multiply those, shape `(N,)`; None for ones.
        """
        self.theta, self.x = theta, x
        self.indices = indices.to(theta.device)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.calibration_kernel = calibration_kernel
        self.device = torch.device(device)
        self.weights = weights

    def __len__(self) -> int:
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Yield batches in random order."""
        device = self.indices.device
        generator = torch.Generator(device).manual_seed(seed)
        order = torch.randperm(len(self.indices), generator=generator, device=device)
        batches = self.indices[order].split(self.batch_size)
        return self._deliver(_shares(batches[: len(self)]))

    def ordered(self) -> Iterator[Batch]:
        """Yield every pair once, in order."""
        return self._deliver(_shares(self.indices.split(self.batch_size)))

    def _deliver(self, batches: Iterable[Tensor]) -> Iterator[Batch]:
        for indices in batches:
            yield self._batch(self.theta[indices], self.x[indices], indices)

    def _batch(self, theta: Tensor, x: Tensor, indices: Tensor) -> Batch:
        x = x.to(self.device)
        weights = self.calibration_kernel(x)
        if self.weights is not None:
            weights = weights * self.weights[indices].to(weights)
        return Batch(theta.to(self.device), x, weights)


def _shares(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield this process's part of each batch, unless it is empty."""
    for indices in batches:
        share = indices[process_rank() :: num_processes()]
        if len(share):
            yield share


class StreamedBatches(SlicedBatches):
    """The same batches, gathered by a thread while earlier batches are used.

    This is for simulations on disk, and for simulations in memory while training on a
    GPU. They are copied to the GPU from pinned memory, on a stream of their own.
    """

    @cached_property
    def _copies(self) -> torch.cuda.Stream | None:
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _deliver(self, batches: Iterable[Tensor]) -> Iterator[Batch]:
        copies = self._copies
        rest = iter(batches)
        worker = ThreadPoolExecutor(max_workers=1)

        def fetch(num: int) -> list[Future[Fetched]]:
            return [
                worker.submit(self._fetch, indices, copies)
                for indices in islice(rest, num)
            ]

        try:
            fetched = deque(fetch(AHEAD))
            while fetched:
                theta, x, indices, copied = fetched.popleft().result()
                fetched.extend(fetch(1))
                if copied is not None:
                    steps = torch.cuda.current_stream(self.device)
                    steps.wait_event(copied)
                    theta.record_stream(steps)
                    x.record_stream(steps)
                yield self._batch(theta, x, indices)
        finally:
            worker.shutdown(cancel_futures=True)

    def _fetch(self, indices: Tensor, copies: torch.cuda.Stream | None) -> Fetched:
        """Gather a batch on the worker's thread, and begin to copy it to the device."""
        theta, x = self.theta[indices], self.x[indices]
        if copies is None:
            return theta, x, indices, None
        with torch.cuda.stream(copies):
            theta = theta.pin_memory().to(self.device, non_blocking=True)
            x = x.pin_memory().to(self.device, non_blocking=True)
            return theta, x, indices, copies.record_event()


class LoadedBatches:
    """Batches that a data loader delivers."""

    def __init__(
        self,
        loader: DataLoader[Any],
        calibration_kernel: CalibrationKernel,
        device: torch.device | str,
    ) -> None:
        """
        Args:
            loader: Yields parameters `(batch, D)`, simulations `(batch, ...)`, and more.
            calibration_kernel: Weights of simulations, from x to `(batch,)`.
            device: Where to deliver the batches.
        """
        self.loader = loader
        self.calibration_kernel = calibration_kernel
        self.device = device

    def __len__(self) -> int:
        return len(self.loader)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Yield the loader's batches, in its own order."""
        return self.ordered()

    def ordered(self) -> Iterator[Batch]:
        """Yield the loader's batches."""
        for theta, x, *_ in self.loader:
            x = x.to(self.device)
            yield Batch(theta.to(self.device), x, self.calibration_kernel(x))


def scale_weights(batches: SlicedBatches | LoadedBatches) -> None:
    """Scale the weights of all pairs so that their mean is one.

    Raises:
        ValueError: If there is not one weight for each pair, or their mean is not
            positive and finite.
    """
    sums = torch.zeros(2, device=batches.device)
    for batch in batches.ordered():
        if batch.weights.shape != batch.x.shape[:1]:
            raise ValueError(
                "Expected `calibration_kernel` to return a weight for each simulation, "
                f"shape ({len(batch.x)},), got {tuple(batch.weights.shape)}."
            )
        sums += torch.stack([batch.weights.sum(), torch.ones_like(batch.weights).sum()])
    total, num = mean_over_processes(sums).tolist()
    if not 0 < total < inf:
        raise ValueError(
            "Expected `calibration_kernel` to return weights of a positive, finite mean, "
            "for training and for held-out simulations, got a mean of "
            f"{total / max(num, 1)}."
        )
    kernel = batches.calibration_kernel
    batches.calibration_kernel = lambda x: kernel(x) * (num / total)


def check_shares(training: Batches) -> None:
    """Raise a ValueError unless all processes can take the same steps.

    Args:
        training: Batches of an epoch, which several processes may share.
    """
    num = num_processes()
    if num > 1 and not (
        isinstance(training, SlicedBatches)
        and training.drop_last
        and training.batch_size % num == 0
    ):
        raise ValueError(
            f"Expected `training_batch_size` to be a multiple of the {num} processes "
            "that train together, and no `dataloader_kwargs` that deliver other batches."
        )
