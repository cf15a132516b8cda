"""One training a row: its CPU seconds by phase, its accuracy, and its samples' cost."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.accuracy.c2st import c2st_random_forest_fold
from benchmarks.accuracy.held_out import energy_nll, flow_nll
from benchmarks.methods.problem import Problem, fit_npe, problem_of
from benchmarks.methods.training import NO_VALUE
from benchmarks.report import commit
from benchmarks.tasks.references import NUM_SAMPLES, reference
from benchmarks.tasks.sbibm import TASKS
from benchmarks.tasks.task import Task, on_device
from benchmarks.tasks.unseen import UNSEEN
from sbi_jeffreys.trainer import JNPE
from sbi_jeffreys.training.loop import JeffreysTraining

ALL_TASKS = {name: TASKS[name] for name in TASKS if name != "folded_gaussian"} | UNSEEN
OBSERVATIONS = (1, 2, 3)
NUM_X, SAMPLES_PER_X = 500, 20

LIMITS = (5, 10, 20)
"""Values of `max_num_epochs` beside the default."""

NPE = ("npe_nsf", "npe_maf", "npe_nsf_ensemble")
JNPE_METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "jnpe": ({}, {}),
    **{f"jnpe_{limit}": ({}, {"max_num_epochs": limit}) for limit in LIMITS},
    "jnpe_without_pool": ({"pool": False}, {}),
}
"""Options of `JNPE` and of its `train`, by the name of the method."""

METHODS = (*NPE, *JNPE_METHODS)


class Row(NamedTuple):
    """One training. Seconds are CPU seconds, or on a GPU those of the clock.

    Attributes:
        task: Name of the task.
        method: One of `METHODS`.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and training.
        seconds: Of the training.
        networks, pool, following: Of its phases; zero for NPE.
        epochs: Epochs of the networks, of an ensemble together.
        nll, nll_corrected: Test NLL of the flow and of the corrected posterior, in nats.
            NPE's is that of its posterior, within the prior.
        c2st, c2st_corrected: Mean over `OBSERVATIONS` of the random forest on one fold;
            NaN where there is no reference.
        sampling, sampling_many: Seconds for `NUM_SAMPLES` samples given one x, and for
            `SAMPLES_PER_X` given each of `NUM_X`, of the corrected posterior or of NPE's.
        commit: Of the code.
        device: Of the training.
    """

    task: str
    method: str
    num_simulations: int
    seed: int
    seconds: float
    networks: float
    pool: float
    following: float
    epochs: int
    nll: float
    nll_corrected: float
    c2st: float
    c2st_corrected: float
    sampling: float
    sampling_many: float
    commit: str
    device: str


def measure(
    task: str, method: str, num_simulations: int, seed: int, device: str = "cpu"
) -> Row:
    """Train once, and measure.

    Args:
        task: Name of one of `ALL_TASKS`.
        method: One of `METHODS`.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and training.
        device: Device that JNPE trains on. NPE trains on the CPU.
    """
    problem = problem_of(ALL_TASKS[task], num_simulations, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = _npe(problem, method) if method in NPE else _jnpe(problem, method, device)
    return Row(task, method, num_simulations, seed, **parts, commit=commit())


def _npe(problem: Problem, method: str) -> dict[str, Any]:
    fit = fit_npe(problem, method)
    quick = {"reject_outside_prior": False, "show_progress_bars": False}
    sampling = _sampling_seconds(fit.posterior, problem.test[1], **quick)
    return {
        "seconds": fit.training_seconds,
        "networks": 0.0,
        "pool": 0.0,
        "following": 0.0,
        "epochs": fit.epochs,
        "nll": fit.nll,
        "nll_corrected": NO_VALUE,
        "c2st": _c2st(problem.task, fit.posterior),
        "c2st_corrected": NO_VALUE,
        **sampling,
        "device": "cpu",
    }


def _jnpe(problem: Problem, method: str, device: str) -> dict[str, Any]:
    task, theta, x, test, seed = problem
    options, training = JNPE_METHODS[method]
    torch.manual_seed(seed)
    prior = on_device(task.prior, device)
    trainer = JNPE(prior, device=device, show_progress_bars=False, **options)
    trainer.append_simulations(theta, x)
    clock = time.process_time if device == "cpu" else time.perf_counter
    with _phases(clock) as spent:
        start = clock()
        flow = trainer.train(**training)
        seconds = clock() - start
    flow_posterior = trainer.build_posterior()
    corrected = trainer.build_posterior(sample_with="energy")
    for posterior in (flow_posterior, corrected):
        posterior.to("cpu")
    flow = flow.to("cpu")
    return {
        "seconds": seconds,
        "networks": spent["run"],
        "pool": seconds - spent["run"] - spent["follow"],
        "following": spent["follow"],
        "epochs": trainer.epoch,
        "nll": flow_nll(flow, *test),
        "nll_corrected": energy_nll(corrected.pair.energy, flow, *test),
        "c2st": _c2st(task, flow_posterior),
        "c2st_corrected": _c2st(task, corrected),
        **_sampling_seconds(corrected, test[1], show_progress_bars=False),
        "device": device,
    }


@contextmanager
def _phases(clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Sum the seconds of the networks' training ("run") and of following ("follow")."""
    spent = {"run": 0.0, "follow": 0.0}

    def timed(name: str) -> Callable[..., Any]:
        original = getattr(JeffreysTraining, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return original(*args, **kwargs)
            finally:
                spent[name] += clock() - start

        return method

    with ExitStack() as stack:
        for name in spent:
            stack.enter_context(patch.object(JeffreysTraining, name, timed(name)))
        yield spent


def _sampling_seconds(posterior: Any, x: Tensor, **options: Any) -> dict[str, float]:
    torch.manual_seed(0)
    start = time.process_time()
    posterior.sample((NUM_SAMPLES,), x=x[:1], **options)
    middle = time.process_time()
    posterior.sample_batched((SAMPLES_PER_X,), x=x[:NUM_X], **options)
    end = time.process_time()
    return {"sampling": middle - start, "sampling_many": end - middle}


def _c2st(task: Task, posterior: Any) -> float:
    """Return the mean C2ST, or NaN for a task without reference posteriors."""
    if task.name not in TASKS:
        return NO_VALUE
    values = []
    for number in OBSERVATIONS:
        _, x_o, samples = reference(task, number)
        drawn = posterior.sample((NUM_SAMPLES,), x=x_o, show_progress_bars=False)
        values.append(c2st_random_forest_fold(samples, drawn))
    return sum(values) / len(values)
