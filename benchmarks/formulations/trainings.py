"""One training of a pair, without a pool, on one of the problems."""

import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from math import exp
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.accuracy.held_out import TEST_SEED, energy_nll, flow_nll
from benchmarks.cost.trainings import ALL_TASKS
from benchmarks.formulations.problems import (
    FORMULATIONS,
    GRID,
    EachPair,
    FixedReference,
    Formulation,
)
from benchmarks.methods.training import NO_VALUE
from benchmarks.paper.planar import draw_mixture
from benchmarks.report import commit
from benchmarks.rows import curve
from sbi_jeffreys.data.batches import Batches, SlicedBatches
from sbi_jeffreys.data.store import unit_weights
from sbi_jeffreys.models.building import PairBuilder, flow_builder
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.objective.multipliers import FixedMultipliers
from sbi_jeffreys.training.early_stopping import EarlyStopping
from sbi_jeffreys.training.epochs import EpochLoop
from sbi_jeffreys.training.schedule import Cycles
from sbi_jeffreys.training.step import PrimalDualStep, TrainedPair, TrainingOptions

MIXTURE = "mixture"
"""Name of the task of Figure 2: points of a Gaussian mixture in the plane, without x."""

TASKS = (
    "gaussian_linear",
    "two_moons",
    "bernoulli_glm",
    "queue",
    "ornstein_uhlenbeck",
    MIXTURE,
)
"""What problems are compared on."""

NUM_CYCLES = 2
"""Cycles of the learning rates in a training: the last epoch is past overfitting."""

MIXTURE_POINTS, MIXTURE_EPOCHS = 500, 500
NUM_TEST, NUM_MIXTURE_TEST = 1000, 2000

NUM_FOLDS = 4
"""Parts of the training pairs. A flow that is trained on the others judges each part."""

BATCH_SIZE, RATE, CLIP, HELD_OUT = 200, 4e-3, 5.0, 0.1
"""The defaults of `JNPE.train`."""


class Data(NamedTuple):
    """Simulations and how they are used.

    Attributes:
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, ...)`.
        prior: The prior, or None.
        training: Rows to train on.
        held_out: Rows to choose the epoch by.
    """

    theta: Tensor
    x: Tensor
    prior: Distribution | None
    training: Tensor
    held_out: Tensor

    def batches(self, rows: Tensor, weights: Tensor | None = None) -> SlicedBatches:
        """Return batches of some rows, with weights `(N,)` or with ones."""
        size = min(BATCH_SIZE, len(rows))
        return SlicedBatches(
            self.theta, self.x, rows, size, True, unit_weights, "cpu", weights
        )

    def new_pair(self, rows: Tensor) -> ModelPair:
        """Return untrained models, standardised by some rows."""
        build = PairBuilder(flow_builder(None, None))
        return build(self.theta[rows], self.x[rows], self.prior)


class Row(NamedTuple):
    """One training. Losses are those of fresh pairs, in nats.

    Attributes:
        task: Name of the task, or `MIXTURE`.
        formulation: Name of one of `FORMULATIONS` or `GRID`.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and training.
        seconds: CPU seconds, those of flows for levels out of fold included.
        epochs: Epochs trained.
        flow_kept, energy_kept: Test NLL at the epoch with the lowest held-out loss of the
            flow, which JNPE keeps. NaN for an energy that is not trained.
        flow_last, energy_last: Test NLL at the last epoch.
        z_last: e to the mean log normaliser of the energy at the last epoch, over
            held-out pairs.
        multipliers: The last weights of the divergences.
        commit: Of the code.
    """

    task: str
    formulation: str
    num_simulations: int
    seed: int
    seconds: float
    epochs: int
    flow_kept: float
    energy_kept: float
    flow_last: float
    energy_last: float
    z_last: float
    multipliers: str
    commit: str


def keys(
    tasks: Iterable[str], budgets: Iterable[int], seeds: Iterable[int]
) -> list[tuple[str, str, int, int]]:
    """Return the keys of all trainings, seed by seed.

    The mixture has `MIXTURE_POINTS` points and the grid of fixed weightings, too.
    """
    result = []
    for seed, task in product(seeds, tasks):
        names = FORMULATIONS | GRID if task == MIXTURE else FORMULATIONS
        numbers = (MIXTURE_POINTS,) if task == MIXTURE else budgets
        result += [(task, name, num, seed) for num, name in product(numbers, names)]
    return result


def measure(task: str, formulation: str, num_simulations: int, seed: int) -> Row:
    """Train once, and measure.

    Args:
        task: `MIXTURE` or the name of a task.
        formulation: Name of one of `FORMULATIONS` or `GRID`.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and training.
    """
    problem = (FORMULATIONS | GRID)[formulation]
    theta, x, prior = _simulated(task, num_simulations, seed)
    torch.manual_seed(seed)
    num_training = int((1 - HELD_OUT) * num_simulations)
    parts = torch.randperm(num_simulations).tensor_split([num_training])
    data = Data(theta, x, prior, *parts)
    epochs = MIXTURE_EPOCHS
    if task != MIXTURE:
        epochs = Cycles.of(num_simulations).ends(NUM_CYCLES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        loop = train(data, problem, epochs, seed)
        seconds = time.process_time() - start
        test = _test_pairs(task)
        kept, last = (
            _losses(pair, loop.pair.flow, problem.trains_energy, test)
            for pair in (loop.pair, loop.latest)
        )
    return Row(
        task,
        formulation,
        num_simulations,
        seed,
        seconds=seconds,
        epochs=loop.epoch,
        flow_kept=kept[0],
        energy_kept=kept[1],
        flow_last=last[0],
        energy_last=last[1],
        z_last=exp(loop.history["validation_log_z"][-1]),
        multipliers=curve(_multipliers(loop, data.training).tolist()),
        commit=commit(),
    )


def _losses(
    pair: ModelPair,
    proposal: ConditionalFlow,
    has_energy: bool,
    test: tuple[Tensor, Tensor],
) -> tuple[float, float]:
    """Return the test NLL of flow and energy, whose log Z is from draws of `proposal`.

    An overfitted flow would miss a part of Z, and make the energy look better than it is.
    """
    energy = energy_nll(pair.energy, proposal, *test) if has_energy else NO_VALUE
    return flow_nll(pair.flow, *test), energy


def _multipliers(loop: EpochLoop, rows: Tensor) -> Tensor:
    """Return the last weights of the divergences, means over pairs, shape `(3,)`."""
    values = loop.step.multipliers.values
    if isinstance(loop.pair, EachPair):
        of_flow, of_energy = loop.pair.multipliers[:, rows].mean(-1)
        values = torch.stack([of_flow, values[1], of_energy])
    return values


def train(data: Data, problem: Formulation, epochs: int, seed: int) -> EpochLoop:
    """Train new models for a number of epochs, and return the loop with the kept ones.

    Args:
        data: Simulations.
        problem: What is solved.
        epochs: Epochs, whatever the held-out loss does.
        seed: Seed of the training.
    """
    pair, options = data.new_pair(data.training), TrainingOptions()
    levels = None
    if problem.level != "held out":
        levels = levels_out_of_fold(data, seed)
    make: Callable[..., TrainedPair] = problem.pair
    weights = None
    if problem.level == "out of fold, each pair":
        assert levels is not None
        make = partial(EachPair, levels=levels)
        weights = torch.arange(len(data.theta))
    models = make(pair.flow, pair.energy, options)
    rate = 2 * RATE if problem.trains_energy else None
    step = PrimalDualStep(models, problem.multipliers(), RATE, rate)
    if problem.level == "out of fold":
        assert levels is not None
        step.reference = FixedReference(float(levels[data.training].mean()))
    batches = data.batches(data.training, weights)
    return _run(step, data, batches, epochs, seed)


def levels_out_of_fold(data: Data, seed: int) -> Tensor:
    """Return the NLL of each training pair under a flow that has not seen it.

    The flows are fitted by maximum likelihood, for a cycle of the learning rates.

    Args:
        data: Simulations.
        seed: Seed of the trainings.

    Returns:
        NLL in nats by row, shape `(N,)`; zero for rows that are held out.
    """
    levels = torch.zeros(len(data.theta))
    folds = data.training.tensor_split(NUM_FOLDS)
    for number, fold in enumerate(folds):
        rows = torch.cat([*folds[:number], *folds[number + 1 :]])
        pair = data.new_pair(rows)
        step = PrimalDualStep(
            TrainedPair(pair.flow, pair.energy, TrainingOptions()),
            FixedMultipliers((1.0, 0.0, 0.0)),
            RATE,
            None,
        )
        epochs = Cycles.of(len(data.theta)).ends(1)
        loop = _run(step, data, data.batches(rows), epochs, seed + number)
        with torch.no_grad():
            flow = loop.pair.flow.eval()
            log_p = flow.log_prob(data.theta[fold].unsqueeze(0), data.x[fold])
        levels[fold] = -log_p[0]
    return levels


def _run(
    step: PrimalDualStep, data: Data, batches: Batches, epochs: int, seed: int
) -> EpochLoop:
    cycles = Cycles.of(len(data.training) + len(data.held_out))
    loop = EpochLoop(step, EarlyStopping(), cycles, seed)
    held_out = data.batches(data.held_out)
    loop.run(batches, held_out, epochs, epochs + 1, CLIP, show_progress=False)
    return loop


def _simulated(task: str, num: int, seed: int) -> tuple[Tensor, Tensor, Any]:
    if task == MIXTURE:
        theta = draw_mixture(num, seed)
        return theta, theta.new_zeros(num, 1), None
    return *ALL_TASKS[task].simulate(num, seed), ALL_TASKS[task].prior


def _test_pairs(task: str) -> tuple[Tensor, Tensor]:
    num = NUM_MIXTURE_TEST if task == MIXTURE else NUM_TEST
    theta, x, _ = _simulated(task, num, TEST_SEED)
    return theta, x
