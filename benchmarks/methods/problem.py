"""What a method is given in the tables of costs and controls, and sbi's NPE on it."""

from typing import NamedTuple

from torch import Tensor

from benchmarks.accuracy.held_out import NUM_TEST_PAIRS, TEST_SEED
from benchmarks.methods.npe import EnsembleTraining, NPETraining
from benchmarks.methods.registry import TRAININGS
from benchmarks.methods.training import Fit
from benchmarks.tasks.task import Task


class Problem(NamedTuple):
    """What a method is given.

    Attributes:
        task: The task.
        theta: Parameters of simulations, shape `(N, D)`.
        x: Simulations, shape `(N, ...)`.
        test: Fresh pairs, of shapes `(M, D)` and `(M, ...)`.
        seed: Seed of the training.
    """

    task: Task
    theta: Tensor
    x: Tensor
    test: tuple[Tensor, Tensor]
    seed: int


def problem_of(task: Task, num_simulations: int, seed: int) -> Problem:
    """Simulate what a method is given.

    Args:
        task: The task.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and training.
    """
    test = task.simulate(NUM_TEST_PAIRS, TEST_SEED)
    return Problem(task, *task.simulate(num_simulations, seed), test, seed)


def fit_npe(problem: Problem, method: str) -> Fit:
    """Train one of sbi's NPE.

    Args:
        problem: What it is given.
        method: Name of a training that is an `NPETraining` or an `EnsembleTraining`.
    """
    task, theta, x, test, seed = problem
    training = TRAININGS[method]
    assert isinstance(training, NPETraining | EnsembleTraining)
    if task.embedding is not None:
        training = training.embedding(task.embedding)
    (fit,) = training.fit(task.prior, theta, x, test, seed)
    return fit
