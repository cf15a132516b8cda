"""Simulations of draws from a prior or posterior."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import ArrayLike
from sbi.inference import simulate_for_sbi
from torch import Tensor

from sbi_jeffreys.diagnostics.draws import FixedSamples

Simulator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Predictive:
    """Runs a simulator at draws, in parallel, by `sbi`'s `simulate_for_sbi`.

    Attributes:
        simulator: Maps a float32 tensor `(batch, D)` to a tensor `(batch, *x)`.
        num_draws: Number of draws to simulate, rounded up to a multiple of the chains.
        num_workers: Number of processes.
        simulation_batch_size: Approximate number of parameters in a call.
        show_progress_bars: Whether to show progress.
    """

    simulator: Simulator
    num_draws: int = 1000
    num_workers: int = 1
    simulation_batch_size: int = 100
    show_progress_bars: bool = True

    def __post_init__(self) -> None:
        if not callable(self.simulator):
            raise TypeError(
                "Expected `simulator` to be callable, got "
                f"{type(self.simulator).__name__}."
            )

    def __call__(self, theta: np.ndarray, observed: Tensor | None) -> np.ndarray:
        """Simulate the first draws of each chain.

        Simulations of calls that fail are NaN, with a warning. After an interrupt in this
        process (Ctrl-C), so are all that follow.

        Args:
            theta: Draws, shape `(chain, draw, D)`.
            observed: Observations, shape `(n, *x)`, or None. Each draw gives n
                simulations.

        Returns:
            Simulations, shape `(chain, some, *x)`, or `(chain, some, n, *x)` if n > 1.

        Raises:
            Exception: What the simulator raised, if no call succeeded.
            ValueError: If each call returns something else than a tensor `(batch, *x)`,
                or if its shape differs from that of the observations.
        """
        first = theta[:, : ceil(self.num_draws / len(theta))]
        several = 1 if observed is None else len(observed)
        rows = torch.from_numpy(first).float().flatten(0, 1)
        rows = rows.repeat_interleave(several, 0)
        calls = _Calls(self.simulator, None if observed is None else observed.shape[1:])
        _, x = simulate_for_sbi(
            calls,
            FixedSamples(rows),
            len(rows),
            self.num_workers,
            self.simulation_batch_size,
            show_progress_bar=self.show_progress_bars,
        )
        invalid = ~x.flatten(1).isfinite().all(-1)
        if bool(invalid.all()):
            calls.explain(rows[: self.simulation_batch_size])
        if bool(invalid.any()):
            name = getattr(self.simulator, "__name__", type(self.simulator).__name__)
            why = f" The first call that failed: {calls.errors[0]!r}."
            warnings.warn(
                f"{int(invalid.sum())} of {len(rows)} simulations by `{name}` are NaN or "
                f"infinite.{why if calls.errors else ''}",
                stacklevel=3,
            )
        axes = (several,) if several > 1 else ()
        return x.numpy().reshape(*first.shape[:2], *axes, *x.shape[1:])


def count_invalid(x: np.ndarray) -> int:
    """Return the number of draws whose simulations are not all finite.

    Args:
        x: Simulations, shape `(chain, draw, ...)`.
    """
    return int((~np.isfinite(x.reshape(*x.shape[:2], -1)).all(-1)).sum())


class _Calls:
    """Calls a simulator with tensors, and gives NaN where it fails.

    `sbi` sends arrays to its workers.

    Attributes:
        errors: What calls in this process raised.
    """

    def __init__(self, simulator: Simulator, shape: torch.Size | None) -> None:
        """
        Args:
            simulator: The simulator.
            shape: Shape of x; None for that of the first call.
        """
        self.simulator, self.expected = simulator, shape
        self.shape = shape
        self.errors: list[BaseException] = []

    def __call__(self, theta: ArrayLike) -> Tensor:
        rows = torch.as_tensor(theta)
        if not any(isinstance(error, KeyboardInterrupt) for error in self.errors):
            try:
                x = self._checked(rows)
            except (Exception, KeyboardInterrupt) as error:
                if self.shape is None:
                    raise
                self.errors.append(error)
            else:
                self.shape = x.shape[1:]
                return x
        assert self.shape is not None
        return torch.full((len(rows), *self.shape), torch.nan)

    def explain(self, rows: Tensor) -> None:
        """Raise the error because of which no simulation is valid, if there was one."""
        if self.errors:
            raise self.errors[0]
        self._checked(rows)

    def _checked(self, rows: Tensor) -> Tensor:
        x = self.simulator(rows)
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != len(rows):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"Expected `simulator` to return a tensor of shape ({len(rows)}, *x) for "
                f"{len(rows)} parameters, got {got}."
            )
        if self.expected is not None and x.shape[1:] != self.expected:
            raise ValueError(
                "Expected `simulator` to return simulations like `x_o`, of shape "
                f"{tuple(self.expected)} for each draw, got {tuple(x.shape[1:])}."
            )
        return x.detach().cpu()
