"""One short training a row, and what became of it."""

import re
import warnings
from typing import NamedTuple

import torch
from sbi.utils.sbiutils import within_support

from benchmarks.report import commit
from benchmarks.stress.problems import draw
from sbi_jeffreys.trainer import JNPE

NUM_EPOCHS = 10
NUM_SAMPLES, NUM_X = 50, 5
SAID = re.compile(r"became .* (of|in) epoch \d+")
"""What warnings and errors say of a training that diverged."""


class Row(NamedTuple):
    """One training.

    Attributes:
        seed: Seed of the problem and of the training.
        prior, simulator, num_simulations, learning_rate: See `Problem`.
        outcome: "fine"; "said", where a training that diverged said so; or what went
            wrong.
        commit: Of the code.
    """

    seed: int
    prior: str
    simulator: str
    num_simulations: int
    learning_rate: float
    outcome: str
    commit: str


def measure(seed: int) -> Row:
    """Train on the problem of a seed, sample both posteriors, and check them."""
    problem = draw(seed)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        try:
            outcome = _outcome(seed)
        except FloatingPointError as error:
            outcome = "said" if _says(error) else repr(error)
        except Exception as error:
            outcome = repr(error)
    if outcome == "fine" and any(_says(warning.message) for warning in given):
        outcome = "said"
    return Row(
        seed,
        problem.prior,
        problem.simulator,
        problem.num_simulations,
        problem.learning_rate,
        outcome,
        commit(),
    )


def _outcome(seed: int) -> str:
    problem = draw(seed)
    torch.manual_seed(seed)
    prior, theta, x = problem.simulate(problem.num_simulations)
    trainer = JNPE(prior, show_progress_bars=False).append_simulations(theta, x)
    trainer.train(
        max_num_epochs=NUM_EPOCHS,
        learning_rate=problem.learning_rate,
        training_batch_size=50,
    )
    _, truth, x_o = problem.simulate(NUM_X)
    for sample_with in ("direct", "energy"):
        posterior = trainer.build_posterior(sample_with=sample_with)
        samples = posterior.sample_batched((NUM_SAMPLES,), x_o, show_progress_bars=False)
        if not bool(samples.isfinite().all()):
            return f"samples of {sample_with} are not finite numbers"
        if not bool(within_support(prior, samples.flatten(0, 1)).all()):
            return f"samples of {sample_with} leave the prior"
        log_prob = posterior.log_prob_batched(truth[None], x_o)
        if bool(log_prob.isnan().any()) or bool(log_prob.isposinf().any()):
            return f"log_prob of {sample_with} is NaN or infinite"
    return "fine"


def _says(message: BaseException | str | Warning) -> bool:
    return SAID.search(str(message)) is not None
