"""Batches of simulations that survive what a simulator may do.

A simulation may raise an error, take for ever, or return NaN. Its row of x is then NaN,
its status says why, and its parameters are kept.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import ProcessPoolExecutor
from numpy.typing import ArrayLike

from sbi_jeffreys.sampling.random_state import random_state

SIMULATIONS = 1 << 62
"""Added to the streams of simulations, which are then not those of the rest of a run."""

Simulator = Callable[[Any], ArrayLike]
"""Maps parameters to x: a tensor or an array, `(batch, D)` to `(batch, ...)`, or, one at
a time, `(D,)` to `(...)`."""


class Status(IntEnum):
    """What became of a simulation."""

    VALID = 0
    NOT_FINITE = 1
    RAISED = 2
    TIMED_OUT = 3


class Batch(NamedTuple):
    """Some simulations of a round.

    Attributes:
        number: Number of the batch in its round.
        theta: Parameters, shape `(n, D)`.
        x: Simulations, shape `(n, ...)`, NaN where there is none. Shape `(n, 0)` if there
            is none at all.
        status: A `Status` for each, shape `(n,)`.
        error: The first error, or "".
    """

    number: int
    theta: np.ndarray
    x: np.ndarray
    status: np.ndarray
    error: str


@dataclass(frozen=True)
class SafeSimulator:
    """Runs a simulator in batches, in parallel by joblib.

    Attributes:
        simulator: The simulator.
        is_batched: Whether it takes several parameters at a time. If it then raises, they
            are given to it again, one at a time.
        takes_numpy: Whether it takes arrays, rather than tensors.
        batch_size: Parameters in a batch.
        num_workers: Processes; with another backend of joblib, its workers.
        timeout: Seconds that a call may take; None for no limit. With a limit, the
            simulator runs in a process of its own, which is stopped.
    """

    simulator: Simulator
    is_batched: bool
    takes_numpy: bool
    batch_size: int
    num_workers: int
    timeout: float | None

    def batches(
        self, theta: np.ndarray, seed: int, round_number: int, known: set[int]
    ) -> Iterator[Batch]:
        """Yield the batches of a round as they are finished, in any order.

        The random numbers of a batch depend on the seed, its round and its number.

        Args:
            theta: Parameters of the round, shape `(n, D)`.
            seed: Not negative.
            round_number: Number of the round.
            known: Numbers of batches that are left out.
        """
        parts = range(0, len(theta), self.batch_size)
        jobs = [
            delayed(self.run)(
                number, theta[start : start + self.batch_size], (seed, round_number)
            )
            for number, start in enumerate(parts)
            if number not in known
        ]
        workers = Parallel(self.num_workers, return_as="generator_unordered")
        yield from workers(jobs)

    def run(self, number: int, theta: np.ndarray, seeds: tuple[int, int]) -> Batch:
        """Return a batch.

        Args:
            number: Its number.
            theta: Its parameters, shape `(n, D)`.
            seeds: Seed of the run, and number of the round.
        """
        calls = _Calls(self.simulator, self.timeout)
        stream = SIMULATIONS + (seeds[1] << 20) + number
        rows: list[np.ndarray | None] = [None] * len(theta)
        status = np.full(len(theta), Status.VALID, dtype=np.int8)
        error, together = "", None
        if self.is_batched:
            together, what, error = calls(self._input(theta), seeds[0], stream)
            if together is not None and together.shape[:1] != (len(theta),):
                what, error = Status.RAISED, _wrong_shape(together, len(theta))
                together = None
            if together is None and len(theta) == 1:
                status[:] = what
        if together is not None:
            rows = list(together)
        elif not self.is_batched or len(theta) > 1:
            for i, row in enumerate(theta):
                given = row[None] if self.is_batched else row
                result, what, message = calls(self._input(given), seeds[0], stream, i)
                if self.is_batched and result is not None and result.shape[:1] != (1,):
                    what, message = Status.RAISED, _wrong_shape(result, 1)
                    result = None
                error = error or message
                status[i] = what
                if result is not None:
                    rows[i] = result[0] if self.is_batched else result
        calls.close()
        x = _stacked(rows)
        finite = np.isfinite(x.reshape(len(x), -1)).all(-1) & (x.size > 0)
        status[(status == Status.VALID) & ~finite] = Status.NOT_FINITE
        return Batch(number, theta, x, status, error)

    def _input(self, theta: np.ndarray) -> Any:
        return theta.copy() if self.takes_numpy else torch.from_numpy(theta.copy())


class _Calls:
    """Calls a simulator, here or in a process that can be stopped."""

    def __init__(self, simulator: Simulator, timeout: float | None) -> None:
        self.timeout = timeout
        self.simulator = simulator
        self.executor: ProcessPoolExecutor | None = None

    def __call__(
        self, theta: Any, seed: int, stream: int, row: int = 0
    ) -> tuple[np.ndarray | None, Status, str]:
        """Return x or None, what became of it, and an error or ""."""
        stream += row << 40
        try:
            if self.timeout is None:
                return _seeded_call(self.simulator, theta, seed, stream), Status.VALID, ""
            if self.executor is None:
                self.executor = ProcessPoolExecutor(1)
                self.executor.submit(_unpickled, self.simulator).result()
            job = self.executor.submit(_seeded_call, self.simulator, theta, seed, stream)
            if wait([job], self.timeout).not_done:
                self.close()
                return None, Status.TIMED_OUT, f"no result after {self.timeout} s"
            return job.result(), Status.VALID, ""
        except Exception as error:  # whatever a simulator raises
            self.close()  # the process may be gone
            return None, Status.RAISED, repr(error)

    def close(self) -> None:
        """Stop the process, if there is one."""
        if self.executor is not None:
            self.executor.shutdown(wait=False, kill_workers=True)
            self.executor = None


def _seeded_call(simulator: Simulator, theta: Any, seed: int, stream: int) -> np.ndarray:
    with random_state(seed, stream):
        x = simulator(theta)
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().numpy()
    return np.asarray(x, dtype=np.float32)


def _unpickled(simulator: Simulator) -> None:
    """Do nothing, so that imports do not count as the time of a simulation."""


def _wrong_shape(x: np.ndarray, num: int) -> str:
    return f"x of shape {x.shape} for {num} parameters"


def _stacked(rows: list[np.ndarray | None]) -> np.ndarray:
    """Return rows `(n, ...)`, with NaN in place of those that are None or differ.

    Numbers become rows of one entry.
    """
    rows = [None if row is None else np.atleast_1d(row) for row in rows]
    shape = next((row.shape for row in rows if row is not None), (0,))
    x = np.full((len(rows), *shape), np.nan, dtype=np.float32)
    for i, row in enumerate(rows):
        if row is not None and row.shape == shape:
            x[i] = row
    return x
