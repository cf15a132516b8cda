"""The negative log-likelihood of fresh pairs, JNPE beside sbi's NPE."""

import time
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from math import log
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from sbi.inference import NPE
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.utils.sbiutils import within_support
from torch import Tensor, nn
from torch.distributions import Distribution

from benchmarks.report import measured_with, table
from benchmarks.tasks.task import Task
from sbi_jeffreys.models.log_ratio import LogRatioNet
from sbi_jeffreys.trainer import JNPE

NUM_TEST_PAIRS = 2000
NUM_PARTICLES = 200
NUM_LEAKAGE_DRAWS = 200
TEST_SEED = 10_000
COLUMNS = (
    "task",
    "method",
    "simulations",
    "seeds",
    "flow",
    "energy",
    "flow, last epoch",
    "energy, last epoch",
    "epochs",
    "seconds",
)


VARIANTS: dict[str, dict[str, Any]] = {
    "JNPE": {},
    "JNPE, one energy": {"num_energies": 1},
    "JNPE, eight energies": {"num_energies": 8},
    "JNPE, shallow energies": {"energy_net": partial(LogRatioNet, num_blocks=1)},
    "JNPE, wide energies": {"energy_net": partial(LogRatioNet, hidden_features=256)},
    "JNPE, fixed weights": {"weighting": "fixed"},
    "JNPE, slack 0.2 of the flow": {"slack": (0.2, 1.0, 1.0)},
    "JNPE, slack 0.3": {"slack": 0.3, "relaxation_cost": 3.0},
    "JNPE, 16 draws": {"num_particles": 16},
    "JNPE, importance": {"normalizer": "importance"},
    "JNPE, ranking": {"normalizer": "ranking"},
    "JNPE, maf": {"density_estimator": "maf"},
}
"""Options of `JNPE` that differ from the default, by the name of the variant."""


class Row(NamedTuple):
    """One line of the table. Losses are test NLLs in nats, NaN where there is none.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and training.
        flow: Loss of the flow of the best held-out epoch. NPE's is that of its posterior,
            within the prior.
        energy: Loss of the energy of that epoch, with log Z from draws of the flow.
        flow_last: Loss of the flow after training `stretch` times as long.
        energy_last: Loss of the energy after training `stretch` times as long.
        epochs: Epochs trained.
        seconds: Time of training.
    """

    task: str
    method: str
    num_simulations: int
    seed: int
    flow: float
    energy: float
    flow_last: float
    energy_last: float
    epochs: int
    seconds: float


@torch.no_grad()
def flow_nll(flow: ConditionalDensityEstimator, theta: Tensor, x: Tensor) -> float:
    """Return the mean of −log p(θ|x) over pairs, in nats."""
    flow.eval()
    pairs = zip(theta.split(1000), x.split(1000), strict=True)
    return float(torch.cat([-flow.log_prob(t[None], c)[0] for t, c in pairs]).mean())


@torch.no_grad()
def log_mass_inside(
    flow: ConditionalDensityEstimator, prior: Distribution, x: Tensor
) -> Tensor:
    """Return the log of the mass that does not leak from the prior, shape `(N,)`.

    The mass is estimated from draws. If no draw is inside, one is counted. sbi's
    `leakage_correction` draws until some are inside, which does not end if none are.

    Args:
        flow: A flow of sbi's, which may leak.
        prior: Prior over `(D,)`.
        x: Simulations, shape `(N, ...)`.
    """
    flow.eval()
    log_mass = []
    for c in x.split(100):
        draws = flow.sample((NUM_LEAKAGE_DRAWS,), c)
        inside = within_support(prior, draws.flatten(0, 1)).reshape(draws.shape[:2])
        log_mass.append(inside.sum(0).clamp(min=1).div(NUM_LEAKAGE_DRAWS).log())
    return torch.cat(log_mass)


@torch.no_grad()
def energy_nll(
    energy: nn.Module,
    flow: ConditionalDensityEstimator,
    theta: Tensor,
    x: Tensor,
) -> float:
    """Return the mean of −f(θ, x) + log Z(x), with Z from draws of the flow."""
    flow.eval()
    energy.eval()
    losses = []
    for t, c in zip(theta.split(100), x.split(100), strict=True):
        draws, log_p = flow.sample_and_log_prob((NUM_PARTICLES,), c)
        log_z = (energy(draws, c) - log_p).logsumexp(0) - log(NUM_PARTICLES)
        losses.append(log_z - energy(t[None], c)[0])
    return float(torch.cat(losses).mean())


def measure(
    tasks: Iterable[Task],
    num_simulations: int,
    seeds: Iterable[int],
    stretch: int,
    with_npe: bool,
    variants: Iterable[str] = ("JNPE",),
) -> Iterator[Row]:
    """Train on each task with each seed, and yield a row per method.

    Args:
        tasks: Tasks to train on.
        num_simulations: Simulations for training and validation together.
        seeds: Seeds of simulations and of training.
        stretch: For the last columns, JNPE goes on to this many times its epochs. 1
            leaves these columns out.
        with_npe: Whether to train sbi's NPE, "maf" and "nsf", on the same simulations.
        variants: Names from `VARIANTS`.
    """
    for task in tasks:
        test = task.simulate(NUM_TEST_PAIRS, TEST_SEED)
        for seed in seeds:
            theta, x = task.simulate(num_simulations, seed)
            if with_npe:
                for name in ("maf", "nsf"):
                    torch.manual_seed(seed)
                    npe = NPE(task.prior, name, show_progress_bars=False)
                    npe.append_simulations(theta, x)
                    start = time.perf_counter()
                    flow = npe.train()
                    seconds = time.perf_counter() - start
                    nan = float("nan")
                    loss = flow_nll(flow, *test)
                    loss += float(log_mass_inside(flow, task.prior, test[1]).mean())
                    yield Row(
                        task.name, f"NPE {name}", num_simulations, seed,
                        loss, nan, nan, nan, npe.summary["epochs_trained"][-1], seconds,
                    )  # fmt: skip
            for variant in variants:
                yield _measure_jnpe(variant, task, theta, x, test, seed, stretch)


def _measure_jnpe(
    variant: str,
    task: Task,
    theta: Tensor,
    x: Tensor,
    test: tuple[Tensor, Tensor],
    seed: int,
    stretch: int,
) -> Row:
    torch.manual_seed(seed)
    trainer = JNPE(task.prior, show_progress_bars=False, **VARIANTS[variant])
    trainer.append_simulations(theta, x)
    start = time.perf_counter()
    flow = trainer.train()
    seconds = time.perf_counter() - start
    epochs = trainer.epoch
    kept = flow_nll(flow, *test), energy_nll(trainer.energy, flow, *test)
    last = float("nan"), float("nan")
    if stretch > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training is meant to reach `max_num_epochs`
            trainer.train(
                resume_training=True,
                stop_after_epochs=stretch * epochs,
                max_num_epochs=stretch * epochs,
            )
        latest = trainer.latest
        last = flow_nll(latest.flow, *test), energy_nll(latest.energy, latest.flow, *test)
    return Row(task.name, variant, len(theta), seed, *kept, *last, epochs, seconds)


def report(rows: Iterable[Row]) -> str:
    """Return the table in Markdown, with a line per task, method and size."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.method, row.num_simulations), []).append(row)
    lines = [
        (
            task,
            method,
            num_simulations,
            " ".join(str(row.seed) for row in group),
            _spread([row.flow for row in group]),
            _spread([row.energy for row in group]),
            _spread([row.flow_last for row in group]),
            _spread([row.energy_last for row in group]),
            f"{mean(row.epochs for row in group):.0f}",
            f"{mean(row.seconds for row in group):.0f}",
        )
        for (task, method, num_simulations), group in groups.items()
    ]
    return "\n\n".join(
        (
            "Test NLL in nats (lower is better): mean ± standard deviation over seeds.",
            f"Measured with {measured_with('cpu')}.",
            table(COLUMNS, lines),
        )
    )


def _spread(values: list[float]) -> str:
    if any(value != value for value in values):
        return ""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"
