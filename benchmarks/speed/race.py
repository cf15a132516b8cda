"""How long JNPE trains until it is as accurate as sbi's NPE is in the end."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from unittest.mock import patch

import torch
from sbi.inference import NPE
from torch import Tensor

from benchmarks.accuracy.held_out import NUM_TEST_PAIRS, TEST_SEED, flow_nll
from benchmarks.report import table
from benchmarks.speed.contenders import clock
from benchmarks.tasks.task import Task, on_device
from sbi_jeffreys.trainer import JNPE
from sbi_jeffreys.training.epochs import EpochLoop

NPE_FLOWS = ("maf", "nsf")
COLUMNS = (
    "task",
    "seed",
    *(f"NPE {name}: NLL, s (epochs)" for name in NPE_FLOWS),
    "JNPE: NLL, s (epochs)",
    *(f"JNPE to {name}'s NLL: s, ratio" for name in NPE_FLOWS),
    *(f"whole training, ratio to {name}'s" for name in NPE_FLOWS),
)
NOTE = """\
NPE ("maf" is sbi's default) and JNPE train with default options until they stop by
themselves, on {simulations} simulations. NLL is the test NLL in nats of {pairs} fresh
pairs. Lower is better.

"JNPE to NPE's NLL" is the training time until JNPE's flow first had the test NLL that NPE
ends with, and its ratio to the time of NPE's whole training. The moving average of JNPE's
flow is tested after every epoch, with the clock stopped.

NPE's NLL is that of its flow, with what leaks from the prior. NPE runs before JNPE here,
not beside it, so ratios are as noisy as the machine."""


@dataclass(frozen=True)
class Trained:
    """Result of a training: test NLL in nats of the weights kept, seconds, epochs."""

    nll: float
    seconds: float
    epochs: int

    def __str__(self) -> str:
        """Show all three."""
        return f"{self.nll:.3f}, {self.seconds:.1f} ({self.epochs})"


@dataclass(frozen=True)
class Race:
    """NPE with each of its flows, and JNPE, on the same simulations.

    Attributes:
        task: Name of the task.
        seed: Seed of simulations and networks.
        npe: Results of NPE, by the name of the flow.
        jnpe: Result of JNPE with default options.
        seconds_to: Seconds until JNPE's averaged flow first had the test NLL of each
            NPE, infinite if it never had.
    """

    task: str
    seed: int
    npe: dict[str, Trained]
    jnpe: Trained
    seconds_to: dict[str, float]


def race(
    tasks: Iterable[Task],
    num_simulations: int,
    seeds: Iterable[int],
    device: str,
    max_num_epochs: int = 2**31 - 1,
) -> Iterator[Race]:
    """Train NPE, then JNPE, each with default options until it stops by itself.

    Args:
        tasks: Tasks to train on.
        num_simulations: Simulations for training and validation together.
        seeds: Seeds of simulations and networks.
        device: Device of data and networks.
        max_num_epochs: Most epochs of each training.
    """
    for task in tasks:
        prior = on_device(task.prior, device)
        test = _to(device, task.simulate(NUM_TEST_PAIRS, TEST_SEED))
        for seed in seeds:
            simulations = task.simulate(num_simulations, seed)
            npe = {}
            for name in NPE_FLOWS:
                torch.manual_seed(seed)
                npe_trainer = NPE(prior, name, device=device, show_progress_bars=False)
                npe_trainer.append_simulations(*simulations)
                start = clock(device)
                flow = npe_trainer.train(max_num_epochs=max_num_epochs)
                seconds = clock(device) - start
                epochs = npe_trainer.summary["epochs_trained"][-1]
                npe[name] = Trained(flow_nll(flow, *test), seconds, epochs)

            torch.manual_seed(seed)
            trainer = JNPE(prior, device=device, show_progress_bars=False)
            trainer.append_simulations(*simulations)
            start = clock(device)
            with _tested_after_each_epoch(test, device) as tests:
                flow = trainer.train(max_num_epochs=max_num_epochs)
            seconds = clock(device) - start - tests.seconds
            jnpe = Trained(flow_nll(flow, *test), seconds, trainer.epoch)
            seconds_to = {
                name: next(
                    (time - start for time, nll in tests.nlls if nll <= trained.nll), inf
                )
                for name, trained in npe.items()
            }
            yield Race(task.name, seed, npe, jnpe, seconds_to)


class Tests:
    """Test NLLs of the averaged flow, and the time that they took.

    Attributes:
        nlls: Time of the clock after each epoch, less the time of tests, and test NLL.
        seconds: Time that the tests took.
    """

    def __init__(self) -> None:
        self.nlls: list[tuple[float, float]] = []
        self.seconds = 0.0


@contextmanager
def _tested_after_each_epoch(test: tuple[Tensor, Tensor], device: str) -> Iterator[Tests]:
    """Evaluate the averaged flow after each epoch, with the clock stopped."""
    run_epoch, tests = EpochLoop._run_epoch, Tests()

    def run_and_test(training: EpochLoop, *args: object) -> None:
        run_epoch(training, *args)  # type: ignore[arg-type]
        end = clock(device)
        nll = flow_nll(training.latest.flow, *test)
        tests.nlls.append((end - tests.seconds, nll))
        tests.seconds += clock(device) - end

    with patch.object(EpochLoop, "_run_epoch", run_and_test):
        yield tests


def _to(device: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    theta, x = pair
    return theta.to(device), x.to(device)


def report(races: Iterable[Race], num_simulations: int) -> str:
    """Return the table, in Markdown, with a line per task and seed."""
    lines = [
        (
            race.task,
            race.seed,
            *(race.npe[name] for name in NPE_FLOWS),
            race.jnpe,
            *(
                f"{race.seconds_to[name]:.1f}, "
                f"{race.seconds_to[name] / race.npe[name].seconds:.2f}"
                for name in NPE_FLOWS
            ),
            *(f"{race.jnpe.seconds / race.npe[name].seconds:.2f}" for name in NPE_FLOWS),
        )
        for race in races
    ]
    note = NOTE.format(pairs=f"{NUM_TEST_PAIRS:,}", simulations=f"{num_simulations:,}")
    return f"## Time to the accuracy of NPE\n\n{note}\n\n{table(COLUMNS, lines)}"
