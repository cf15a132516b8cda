"""Simulations of draws from a prior or posterior."""

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

        Args:
            theta: Draws, shape `(chain, draw, D)`.
            observed: Observations, shape `(n, *x)`, or None. Each draw gives n
                simulations.

        Returns:
            Simulations, shape `(chain, some, *x)`, or `(chain, some, n, *x)` if n > 1.

        Raises:
            ValueError: If the simulator returns something else than a tensor
                `(batch, *x)`, or if its shape differs from that of the observations.
        """
        first = theta[:, : ceil(self.num_draws / len(theta))]
        several = 1 if observed is None else len(observed)
        rows = torch.from_numpy(first).float().flatten(0, 1)
        rows = rows.repeat_interleave(several, 0)
        _, x = simulate_for_sbi(
            _OnTensors(self.simulator),
            FixedSamples(rows),
            len(rows),
            self.num_workers,
            self.simulation_batch_size,
            show_progress_bar=self.show_progress_bars,
        )
        if observed is not None and x.shape[1:] != observed.shape[1:]:
            raise ValueError(
                "Expected `simulator` to return simulations like `x_o`, of shape "
                f"{tuple(observed.shape[1:])} for each draw, got {tuple(x.shape[1:])}."
            )
        axes = (several,) if several > 1 else ()
        return x.numpy().reshape(*first.shape[:2], *axes, *x.shape[1:])


class _OnTensors:
    """Converts parameters to tensors, because `sbi` sends arrays to its workers."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    def __call__(self, theta: ArrayLike) -> Tensor:
        rows = torch.as_tensor(theta)
        x = self.simulator(rows)
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != len(rows):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"Expected `simulator` to return a tensor of shape ({len(rows)}, *x) for "
                f"{len(rows)} parameters, got {got}."
            )
        return x.detach().cpu()
