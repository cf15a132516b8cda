"""Observations with samples of their true posterior."""

from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from benchmarks.tasks.sbibm_files import sbibm_file
from benchmarks.tasks.task import Task

NUM_OBSERVATIONS = 10
NUM_SAMPLES = 10_000
OBSERVATION_SEED = 1_000_000
VARIANTS = ("_distractors", "_raw")
"""Endings of tasks that share parameters and posteriors with another but have other x."""


class Reference(NamedTuple):
    """An observation, and its posterior.

    Attributes:
        theta: Parameters that x_o was simulated with, shape `(1, D)`.
        x_o: The observation, shape `(1, ...)`.
        samples: Samples of the posterior given x_o, shape `(10000, D)`.
    """

    theta: Tensor
    x_o: Tensor
    samples: Tensor


def reference(task: Task, number: int) -> Reference:
    """Return an observation with exact samples where the task has them, else sbibm's.

    Args:
        task: One of `TASKS`.
        number: Number of the observation, 1 to 10, as in sbibm.

    Raises:
        ValueError: If there is no such observation.
        ModuleNotFoundError: If sbibm is needed and not installed.
    """
    if not 1 <= number <= NUM_OBSERVATIONS:
        raise ValueError(
            f"Expected `number` of the observation to be from 1 to 10, got {number}."
        )
    if task.exact_posterior is not None:
        theta, x_o = task.simulate(1, OBSERVATION_SEED + number)
        with torch.random.fork_rng([]):
            torch.manual_seed(OBSERVATION_SEED + number)
            return Reference(theta, x_o, task.exact_posterior(x_o, NUM_SAMPLES))
    suffix = next((s for s in VARIANTS if task.name.endswith(s)), "")
    base = task.name.removesuffix(suffix)
    theta, x_o, samples = (
        _read(base, number, name)
        for name in (
            "true_parameters.csv",
            f"observation{suffix}.csv",
            "reference_posterior_samples.csv.bz2",
        )
    )
    return Reference(theta, x_o, samples)


def _read(task: str, number: int, name: str) -> Tensor:
    path = sbibm_file(task, f"num_observation_{number}", name)
    return torch.from_numpy(pd.read_csv(path).to_numpy("float32"))
