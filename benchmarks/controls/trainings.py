"""One training a row: the test NLL and the calibration of one part of JNPE, or of NPE."""

import time
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.accuracy.held_out import energy_nll, flow_nll
from benchmarks.cost import trainings as cost
from benchmarks.methods.problem import Problem, fit_npe, problem_of
from benchmarks.methods.registry import TRAININGS
from benchmarks.methods.training import NO_VALUE, Unrejected
from benchmarks.report import commit
from benchmarks.rows import curve
from benchmarks.tasks.fields import FIELDS
from sbi_jeffreys import JNPE, calibrate

ALL_TASKS = cost.ALL_TASKS | FIELDS
LEVELS = (0.5, 0.8, 0.9, 0.95)
SAMPLES_PER_X = 39
"""So many that ranks give each level exactly: 40 has 2, 4, 10 and 20 as divisors."""

NUM_X = {"flow": 2000, "corrected": 500}
"""Test pairs for the calibration. Samples of the corrected posterior take longer."""

MAXIMUM_LIKELIHOOD = {"weighting": "fixed", "weights": (1.0, 0.0, 0.0)}
CONTROLS: dict[str, dict[str, Any]] = {
    "flow alone": {"pool": False, **MAXIMUM_LIKELIHOOD},
    "without agreement": {
        "pool": False,
        "weighting": "fixed",
        "weights": (1.0, 0.0, 1.0),
    },
    "pair": {"pool": False},
    "pool alone": MAXIMUM_LIKELIHOOD,
    "jnpe": {},
}
"""Options of `JNPE`. An energy that is not trained is the prior, so that the pool has its
simpler models alone."""

NPE = ("npe_maf", "npe_nsf", "npe_nsf_ensemble", "npe_nsf_regularized")
METHODS = (*NPE, *CONTROLS)


class Row(NamedTuple):
    """One training.

    Attributes:
        task: Name of the task.
        method: One of `METHODS`.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and training.
        seconds: CPU seconds of the training.
        nll, nll_corrected: Test NLL of the flow and of the corrected posterior, in nats.
            NPE's is that of its posterior, within the prior.
        covered, covered_corrected: Shares of the truths that central intervals of single
            parameters hold, mean over parameters, for each of `LEVELS`.
        commit: Of the code.
    """

    task: str
    method: str
    num_simulations: int
    seed: int
    seconds: float
    nll: float
    nll_corrected: float
    covered: str
    covered_corrected: str
    commit: str


def measure(task: str, method: str, num_simulations: int, seed: int) -> Row:
    """Train once, and measure.

    Args:
        task: Name of one of `ALL_TASKS`.
        method: One of `METHODS`.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and training.
    """
    problem = problem_of(ALL_TASKS[task], num_simulations, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = (_npe if method in NPE else _jnpe)(problem, method)
    return Row(task, method, num_simulations, seed, **measured, commit=commit())


def _npe(problem: Problem, method: str) -> dict[str, Any]:
    fit = fit_npe(problem, method)
    options = TRAININGS[method].batched_options
    assert options is not None
    posterior = Unrejected(fit.posterior, options)
    return {
        "seconds": fit.training_seconds,
        "nll": fit.nll,
        "nll_corrected": NO_VALUE,
        "covered": _covered(posterior, problem.test, NUM_X["flow"]),
        "covered_corrected": curve([]),
    }


def _jnpe(problem: Problem, method: str) -> dict[str, Any]:
    task, theta, x, test, seed = problem
    torch.manual_seed(seed)
    options = dict(CONTROLS[method])
    if task.embedding is not None:
        options["embedding_net"] = task.embedding()
    trainer = JNPE(task.prior, show_progress_bars=False, **options)
    trainer.append_simulations(theta, x)
    start = time.process_time()
    flow = trainer.train()
    seconds = time.process_time() - start
    corrected = trainer.build_posterior(sample_with="energy")
    covered, covered_corrected = (
        _covered(posterior, test, NUM_X[name])
        for name, posterior in (
            ("flow", trainer.build_posterior()),
            ("corrected", corrected),
        )
    )
    return {
        "seconds": seconds,
        "nll": flow_nll(flow, *test),
        "nll_corrected": energy_nll(corrected.pair.energy, flow, *test),
        "covered": covered,
        "covered_corrected": covered_corrected,
    }


def _covered(posterior: Any, test: tuple[Tensor, Tensor], num: int) -> str:
    """Return the shares of truths that intervals hold, of the first pairs."""
    calibration = calibrate(
        posterior,
        test[0][:num],
        test[1][:num],
        num_posterior_samples=SAMPLES_PER_X,
        seed=0,
        show_progress_bars=False,
    )
    return curve(calibration.coverage(LEVELS).coverage.mean(-1))
