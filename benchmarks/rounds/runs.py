"""One posterior for one observation a row, beside sbi's methods in rounds."""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sbi.inference import NLE, NPE
from sbi.utils import RestrictedPrior, get_density_thresholder
from torch import Tensor

from benchmarks.accuracy.c2st import c2st_random_forest_fold
from benchmarks.report import commit
from benchmarks.tasks.references import NUM_SAMPLES, reference
from benchmarks.tasks.sbibm import TASKS
from benchmarks.tasks.task import Task
from sbi_jeffreys.rounds.run import run_rounds
from sbi_jeffreys.trainer import JNPE

NUM_ROUNDS = 5
QUIET: dict[str, Any] = {"show_progress_bars": False}
TRUNCATION = 1e-4
"""Share of the posterior that TSNPE's truncated prior leaves out."""


class Row(NamedTuple):
    """One posterior.

    Attributes:
        task: Name of the task.
        method: One of `METHODS`.
        num_simulations: Simulations of all rounds together.
        seed: Seed of simulations and training.
        observation: Number of the observation, as in sbibm.
        c2st: Random forest on one fold against the reference.
        shift: Largest distance of a mean from the reference's, in standard deviations.
        sd_ratio: Mean ratio of standard deviations to the reference's.
        seconds: CPU seconds of all trainings, proposals and samples.
        commit: Of the code.
    """

    task: str
    method: str
    num_simulations: int
    seed: int
    observation: int
    c2st: float
    shift: float
    sd_ratio: float
    seconds: float
    commit: str


def measure(
    task: str, method: str, num_simulations: int, seed: int, observation: int
) -> Row:
    """Run a method for one observation, and compare its samples with the reference.

    Args:
        task: Name of a task of sbibm.
        method: One of `METHODS`.
        num_simulations: Simulations of all rounds together.
        seed: Seed of simulations and training.
        observation: Number of the observation.
    """
    _, x_o, exact = reference(TASKS[task], observation)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = METHODS[method](TASKS[task], x_o, num_simulations, seed)
    seconds = time.process_time() - start
    mean, sd = exact.mean(0), exact.std(0)
    return Row(
        task,
        method,
        num_simulations,
        seed,
        observation,
        c2st_random_forest_fold(exact, samples),
        float(((samples.mean(0) - mean) / sd).abs().max()),
        float((samples.std(0) / sd).mean()),
        seconds,
        commit(),
    )


def _jnpe_rounds(task: Task, x_o: Tensor, num: int, seed: int) -> Tensor:
    trainer = JNPE(task.prior, **QUIET)
    rounds = run_rounds(trainer, task.simulator, x_o, num, seed=seed, **QUIET)
    return rounds.posterior.sample((NUM_SAMPLES,), **QUIET)


def _jnpe(task: Task, x_o: Tensor, num: int, seed: int) -> Tensor:
    trainer = JNPE(task.prior, **QUIET)
    trainer.append_simulations(*task.simulate(num, seed)).train()
    posterior = trainer.build_posterior(sample_with="energy")
    return posterior.sample((NUM_SAMPLES,), x=x_o, **QUIET)


def _npe_c(task: Task, x_o: Tensor, num: int, seed: int) -> Tensor:
    """Sbi's NPE with atomic proposals (APT)."""
    proposal: Any
    trainer, proposal = NPE(task.prior, "nsf", **QUIET), task.prior
    for size in _sizes(num):
        theta = proposal.sample((size,))
        trainer.append_simulations(theta, task.simulator(theta), proposal=proposal)
        trainer.train()
        proposal = trainer.build_posterior().set_default_x(x_o)
    return proposal.sample((NUM_SAMPLES,), **QUIET)


def _tsnpe(task: Task, x_o: Tensor, num: int, seed: int) -> Tensor:
    """Sbi's NPE with truncated proposals (Deistler et al. 2022)."""
    proposal: Any
    trainer, proposal = NPE(task.prior, "nsf", **QUIET), task.prior
    for size in _sizes(num):
        theta = proposal.sample((size,))
        trainer.append_simulations(theta, task.simulator(theta))
        trainer.train(force_first_round_loss=True)
        posterior = trainer.build_posterior().set_default_x(x_o)
        accept = get_density_thresholder(posterior, TRUNCATION)
        proposal = RestrictedPrior(
            task.prior, accept, posterior=posterior, sample_with="sir"
        )
    return posterior.sample((NUM_SAMPLES,), **QUIET)


def _nle(task: Task, x_o: Tensor, num: int, seed: int) -> Tensor:
    """Sbi's NLE, sampled by slice sampling."""
    proposal: Any
    trainer, proposal = NLE(task.prior, **QUIET), task.prior
    sampling = {"method": "slice_np_vectorized", "num_chains": 20, "warmup_steps": 50}
    for size in _sizes(num):
        theta = proposal.sample((size,))
        trainer.append_simulations(theta, task.simulator(theta)).train()
        proposal = trainer.build_posterior(mcmc_parameters=sampling).set_default_x(x_o)
    return proposal.sample((NUM_SAMPLES,), **QUIET)


def _sizes(num: int) -> list[int]:
    return [len(part) for part in np.array_split(np.empty(num), NUM_ROUNDS)]


METHODS: dict[str, Callable[[Task, Tensor, int, int], Tensor]] = {
    "jnpe_rounds": _jnpe_rounds,
    "jnpe": _jnpe,
    "npe_c": _npe_c,
    "tsnpe": _tsnpe,
    "nle": _nle,
}
"""Functions of task, observation, number of simulations and seed; they return samples."""
