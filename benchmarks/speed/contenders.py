"""sbi's NPE and JNPE side by side: the same data, batches, device and size of flow.

Both are stepped by their own code. They are timed in turn, A B A B, because other work on
the machine slows down both. A ratio is taken within a round.
"""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from statistics import median
from typing import Any, NamedTuple

import torch
from sbi.inference import NPE
from sbi.inference.trainers._contracts import LossArgsNPE, TrainConfig
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch.distributions import Distribution
from torch.optim import Adam
from torch.utils.data import DataLoader

from benchmarks.tasks.sbibm import gaussian_linear_uniform
from benchmarks.tasks.task import Task, on_device
from sbi_jeffreys.data.batches import Batch
from sbi_jeffreys.data.store import unit_weights
from sbi_jeffreys.models.spline_flow import build_spline_flow
from sbi_jeffreys.trainer import JNPE
from sbi_jeffreys.training.cuda_graph import NUM_EAGER_STEPS, CapturedStep
from sbi_jeffreys.training.step import PrimalDualStep

NUM_TRANSFORMS, NUM_BINS = 5, 10


@dataclass(frozen=True)
class Case:
    """Data and settings of both trainers. The task is gaussian_linear_uniform.

    Attributes:
        num_simulations: Simulations for training and validation together.
        dim: Number of parameters, and of entries of x.
        batch_size: Size of training batches.
        num_particles: JNPE's draws K for each x.
        hidden_features: Width of the networks of both flows.
        device: Device of data and networks.
        seed: Seed of simulations and networks.
    """

    num_simulations: int = 2000
    dim: int = 10
    batch_size: int = 200
    num_particles: int = 4
    hidden_features: int = 50
    device: str = "cpu"
    seed: int = 0

    @property
    def task(self) -> Task:
        """The prior and the simulator."""
        return gaussian_linear_uniform(self.dim)

    @property
    def prior(self) -> Distribution:
        """The prior, on the device."""
        return on_device(self.task.prior, self.device)

    def npe(self, kind: type[NPE] = NPE) -> NPE:
        """Return sbi's trainer of a neural spline flow, with simulations."""
        flow = posterior_nn(
            "nsf",
            hidden_features=self.hidden_features,
            num_transforms=NUM_TRANSFORMS,
            num_bins=NUM_BINS,
        )
        trainer = kind(self.prior, flow, device=self.device, show_progress_bars=False)
        return self._with_simulations(trainer)

    def jnpe(self, kind: type[JNPE] = JNPE) -> JNPE:
        """Return this package's trainer, with the same simulations."""
        flow = partial(
            build_spline_flow,
            hidden_features=self.hidden_features,
            num_transforms=NUM_TRANSFORMS,
            num_bins=NUM_BINS,
        )
        trainer = kind(
            self.prior,
            flow,
            device=self.device,
            show_progress_bars=False,
            num_particles=self.num_particles,
        )
        return self._with_simulations(trainer)

    def _with_simulations(self, trainer: Any) -> Any:
        torch.manual_seed(self.seed)
        return trainer.append_simulations(
            *self.task.simulate(self.num_simulations, self.seed)
        )


class Steps(ABC):
    """A trainer that takes as many steps as it is asked for, epoch after epoch."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.batches = chain.from_iterable(self.epoch(number) for number in count())
        self.run(NUM_EAGER_STEPS + 2)

    def run(self, num: int) -> None:
        """Fetch `num` batches and take their steps."""
        self._take(islice(self.batches, num), num)

    def seconds(self, num: int) -> float:
        """Return the mean time of `num` steps."""
        return seconds(lambda: self.run(num), self.device) / num

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Any]:
        """Draw an order and return the batches of the epoch of this number."""

    @abstractmethod
    def _take(self, batches: Iterable[Any], num: int) -> None: ...


class NPESteps(Steps):
    """sbi's own training epoch, cut to as many batches as are asked for."""

    def __init__(self, case: Case) -> None:
        self.trainer = case.npe(_PausedNPE)
        flow = self.trainer.train(training_batch_size=case.batch_size)
        self.loader, self.config, self.loss_args = self.trainer.loop
        flow.to(case.device).train()
        self.trainer.optimizer = Adam(flow.parameters(), lr=self.config.learning_rate)
        super().__init__(case.device)

    def epoch(self, number: int) -> Iterator[Any]:
        """Draw an order and return an epoch's batches, gathered row by row."""
        return iter(self.loader)

    def _take(self, batches: Iterable[Any], num: int) -> None:
        some = _SomeBatches(batches, num, self.loader.batch_size or 1)
        self.trainer._train_epoch(some, self.config.clip_max_norm, self.loss_args)


class JNPESteps(Steps):
    """The steps of `JeffreysTraining`, on CUDA replayed as a graph.

    Attributes:
        training: The training whose steps they are.
    """

    def __init__(self, case: Case) -> None:
        trainer = case.jnpe(JNPE)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Training stopped at `max_num_epochs")
            trainer.train(
                training_batch_size=case.batch_size,
                max_num_epochs=1,
                calibration_kernel=unit_weights,  # for which no pool is fitted
            )
        fit = trainer._fit
        self.data = fit.simulations.batches(
            trainer.train_indices, case.batch_size, unit_weights, None
        )
        assert fit.training is not None
        self.training = fit.training
        self.training.pair.train()
        self.step: PrimalDualStep | CapturedStep = self.training.step
        if self.training.device.type == "cuda":
            self.step = CapturedStep(self.training.step)
        super().__init__(case.device)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Draw the order of this number and return an epoch's batches, sliced."""
        return self.data.shuffled(number)

    def _take(self, batches: Iterable[Batch], num: int) -> None:
        for batch in batches:
            self.step(*batch)


class _PausedNPE(NPE):
    """Keeps the arguments of sbi's training loop instead of running it."""

    _neural_net: ConditionalDensityEstimator
    loop: tuple[DataLoader[Any], TrainConfig, LossArgsNPE]

    def _run_training_loop(
        self,
        train_loader: DataLoader[Any],
        val_loader: DataLoader[Any],
        train_config: TrainConfig,
        loss_args: LossArgsNPE,
    ) -> ConditionalDensityEstimator:
        self.loop = train_loader, train_config, loss_args
        return self._neural_net


class _SomeBatches:
    """The parts of a data loader that sbi's epoch uses."""

    def __init__(self, batches: Iterable[Any], num: int, batch_size: int) -> None:
        self.batches, self.num, self.batch_size = batches, num, batch_size

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return self.num


class Comparison(NamedTuple):
    """Medians over rounds. Ratios, JNPE to NPE, are taken within a round.

    Attributes:
        npe: Median time of sbi's NPE, in seconds.
        jnpe: Median time of JNPE, in seconds.
        ratio: Median of the ratios.
        low: Lowest ratio.
        high: Highest ratio.
    """

    npe: float
    jnpe: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        """Show the ratio and its range."""
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"

    def in_ms(self) -> list[str]:
        """Return NPE's and JNPE's milliseconds and the ratio, as cells of a table."""
        return [milliseconds(self.npe), milliseconds(self.jnpe), str(self)]


def compare(
    npe: Callable[[], float], jnpe: Callable[[], float], rounds: int
) -> Comparison:
    """Measure both in turn, `rounds` times."""
    pairs = [(npe(), jnpe()) for _ in range(rounds)]
    ratios = [second / first for first, second in pairs]
    return Comparison(
        median(first for first, _ in pairs),
        median(second for _, second in pairs),
        median(ratios),
        min(ratios),
        max(ratios),
    )


def seconds(function: Callable[[], Any], device: str) -> float:
    """Return the seconds that a call takes, with the work it starts on the device."""
    start = clock(device)
    function()
    return clock(device) - start


def clock(device: str) -> float:
    """Wait until the device has finished its work, and return the time in seconds."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def milliseconds(time: float) -> str:
    """Return a time in seconds as milliseconds, for a table."""
    return f"{1e3 * time:.2f}"
