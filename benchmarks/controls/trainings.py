"""One training a row: the test NLL and the calibration of one part of JNPE, or of NPE."""

import time
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.accuracy.held_out import (
    NUM_TEST_PAIRS,
    TEST_SEED,
    energy_nll,
    flow_nll,
    log_mass_inside,
)
from benchmarks.cost import trainings as cost
from benchmarks.methods.npe import EnsembleTraining, NPETraining
from benchmarks.methods.registry import TRAININGS
from benchmarks.methods.training import NO_VALUE, Unrejected
from benchmarks.report import commit
from benchmarks.rows import curve
from benchmarks.tasks.fields import FIELDS
from benchmarks.tasks.task import Task
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
    simulated = ALL_TASKS[task].simulate(num_simulations, seed)
    test = ALL_TASKS[task].simulate(NUM_TEST_PAIRS, TEST_SEED)
    fit = _npe if method in NPE else _jnpe
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = fit(ALL_TASKS[task], method, simulated, test, seed)
    return Row(task, method, num_simulations, seed, **measured, commit=commit())


Pairs = tuple[Tensor, Tensor]


def _npe(
    task: Task, method: str, simulated: Pairs, test: Pairs, seed: int
) -> dict[str, Any]:
    training = TRAININGS[method]
    if task.embedding is not None:
        assert isinstance(training, NPETraining | EnsembleTraining)
        training = training.embedding(task.embedding)
    (fit,) = training.fit(task.prior, *simulated, test, seed)
    leaked, options = 0.0, training.batched_options
    if method != "npe_nsf_ensemble":
        leaked = log_mass_inside(fit.posterior.posterior_estimator, task.prior, test[1])
    assert options is not None
    return {
        "seconds": fit.training_seconds,
        "nll": fit.nll + leaked,
        "nll_corrected": NO_VALUE,
        "covered": _covered(Unrejected(fit.posterior, options), test, NUM_X["flow"]),
        "covered_corrected": curve([]),
    }


def _jnpe(
    task: Task, method: str, simulated: Pairs, test: Pairs, seed: int
) -> dict[str, Any]:
    torch.manual_seed(seed)
    options = dict(CONTROLS[method])
    if task.embedding is not None:
        options["embedding_net"] = task.embedding()
    trainer = JNPE(task.prior, show_progress_bars=False, **options)
    trainer.append_simulations(*simulated)
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


def _covered(posterior: Any, test: Pairs, num: int) -> str:
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
