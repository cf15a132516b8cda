"""Speed and memory of JNPE beside sbi's NPE: steps, epochs, sampling, growth with size.

Each function measures one part and returns a section of the report, in Markdown.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.breakdown import Breakdown, break_down
from benchmarks.contenders import (
    Case,
    Comparison,
    JNPESteps,
    NPESteps,
    Steps,
    compare,
    seconds,
)
from benchmarks.report import table

NUM_WARM_UP_EPOCHS = 2
SCALES: Mapping[str, tuple[int, ...]] = {
    "num_simulations": (1_000, 10_000, 100_000, 1_000_000),
    "dim": (2, 5, 10, 20, 50),
    "num_particles": (1, 2, 4, 8, 16, 32),
    "batch_size": (200, 800, 2048, 8192),
}
NUM_SIMULATIONS_FOR_BATCHES = 10_000
GROWTH_COLUMNS = (
    "",
    "NPE, ms",
    "JNPE, ms",
    "ratio",
    "NPE, µs a simulation",
    "JNPE, µs a simulation",
    "NPE begins, ms",
    "JNPE begins, ms",
)


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: Of NPE and JNPE in turn.
        num_steps: Of each in a round.
        num_epochs: Of each in a round, after those of warm-up.
        num_training_epochs: Before posteriors are sampled.
        num_samples: Drawn for one observation.
        num_observations: For each of which a hundredth as many are drawn.
        num_corrected_samples: Drawn of NPE, flow and corrected posterior in turn, for
            each of `num_corrected_observations`.
        num_corrected_observations: See there.
    """

    rounds: int = 3
    num_steps: int = 10
    num_epochs: int = 5
    num_training_epochs: int = 100
    num_samples: int = 10_000
    num_observations: int = 2_000
    num_corrected_samples: int = 1_000
    num_corrected_observations: int = 500


def steps_and_epochs(cases: Iterable[Case], effort: Effort) -> str:
    """Compare steps and whole epochs, in milliseconds."""
    columns = ["simulations", "D", "batch", "K", "per", "NPE, ms", "JNPE, ms", "ratio"]
    lines: list[list[Any]] = []
    for case in cases:
        shape = [case.num_simulations, case.dim, case.batch_size, case.num_particles]
        npe, jnpe = NPESteps(case), JNPESteps(case)
        step = _compare_steps(npe, jnpe, effort)
        lines.append([*shape, "step", *_in_ms(step)])
        if torch.device(case.device).type == "cuda":
            shares = _kernel_seconds(npe) / step.npe, _kernel_seconds(jnpe) / step.jnpe
            busy = [f"{share:.0%}" for share in shares]
            lines.append([*shape, "step, share of it that kernels run", *busy, ""])
        epoch = compare(
            partial(_epoch, case.npe, case, effort),
            partial(_epoch, case.jnpe, case, effort),
            effort.rounds,
        )
        lines.append([*shape, "epoch", *_in_ms(epoch)])
    return _section(
        "Steps and epochs",
        'Medians over rounds of NPE ("nsf") and JNPE in turn; the ratio is that within a '
        "round, as median (lowest to highest). A step fetches its batch. An epoch is "
        "what `epoch_durations_sec` reports, validation included, after "
        f"{NUM_WARM_UP_EPOCHS} epochs of warm-up. It leaves out what is done between "
        "epochs: sbi's copy of better weights, JNPE's checkpoint. JNPE has the C library "
        "keep freed memory for the process, and so for NPE's steps here.",
        table(columns, lines),
    )


def breakdown(cases: Iterable[Case], effort: Effort) -> str:
    """Break a step of JNPE down into its parts."""
    cases = list(cases)
    parts = [
        break_down(JNPESteps(case), effort.rounds, effort.num_steps) for case in cases
    ]
    rows: dict[str, Callable[[Breakdown], Any]] = {
        "step, ms": lambda b: _ms(b.step),
        "data: fetching a batch": lambda b: _ms(b.data),
        "flow, forward direction": lambda b: _ms(b.forward),
        "flow, inverse direction": lambda b: _ms(b.inverse),
        "energy and objective": lambda b: _ms(b.energy),
        "optimiser": lambda b: _ms(b.optimizer),
        "overhead: step − sum": lambda b: _ms(b.overhead),
        "matrix products alone": lambda b: _ms(b.products),
        "their number": lambda b: b.num_products,
        "their GFLOP": lambda b: f"{b.flops / 1e9:.2f}",
        "**floor / step**": lambda b: f"**{b.floor:.2f}**",
    }
    names = [f"{case.num_simulations:,} simulations" for case in cases]
    return _section(
        "Where JNPE's step goes",
        "In ms, medians over rounds in which each part runs alone, forwards and "
        "backwards. What both directions of the flow share is counted in the first; the "
        "inverse direction is both less the first. The floor is the time of the step's "
        "matrix products (mm, addmm, bmm) with their own operands, recorded from one "
        "step and run one after the other; triangular solves are not counted in it.",
        table(
            ["", *names],
            [[row, *(cell(part) for part in parts)] for row, cell in rows.items()],
        ),
    )


def sampling(case: Case, effort: Effort) -> str:
    """Compare the rates at which posteriors are sampled."""
    trainers = (case.npe(), case.jnpe())
    for trainer in trainers:
        with _max_num_epochs_expected():
            trainer.train(max_num_epochs=effort.num_training_epochs)
    posteriors = [trainer.build_posterior() for trainer in trainers]
    corrected = trainers[1].build_posterior(sample_with="energy")
    _, x = case.task.simulate(effort.num_observations, case.seed + 1)
    x = x.to(case.device)
    few = effort.num_samples // 100
    requests: dict[str, tuple[int, Callable[[Any], Any]]] = {
        f"`sample(({effort.num_samples},), x=x_o)`": (
            effort.num_samples,
            lambda posterior: posterior.sample(
                (effort.num_samples,), x=x[:1], show_progress_bars=False
            ),
        ),
        f"`sample_batched(({few},), x)`, {len(x)} observations": (
            few * len(x),
            lambda posterior: posterior.sample_batched(
                (few,), x=x, show_progress_bars=False, reject_outside_prior=False
            ),
        ),
    }
    lines = []
    for name, (num, request) in requests.items():
        npe, jnpe = (
            partial(seconds, partial(request, posterior), case.device)
            for posterior in posteriors
        )
        result = compare(npe, jnpe, effort.rounds)
        rates = [f"{num / time:,.0f}" for time in (result.npe, result.jnpe)]
        lines.append([name, *rates, result])
    return _section(
        "Sampling the posterior",
        "Samples a second, and the ratio of times, JNPE's to NPE's, after "
        f"{effort.num_training_epochs} epochs on {case.num_simulations:,} simulations "
        f"with D = {case.dim}. For one observation, NPE rejects what falls outside of "
        "the prior; for many it is told not to, for then it may not end: of some "
        "observations next to no sample is accepted. JNPE's samples are all inside.",
        "\n\n".join(
            [
                table(["request", "NPE, 1/s", "JNPE, 1/s", "ratio of times"], lines),
                _corrected_sampling([*posteriors, corrected], case, effort),
            ]
        ),
    )


def _corrected_sampling(posteriors: list[Any], case: Case, effort: Effort) -> str:
    """Compare NPE, JNPE's flow, and the flow corrected by the energy, in turn."""
    npe, flow, corrected = posteriors
    num = effort.num_corrected_samples
    _, x = case.task.simulate(effort.num_corrected_observations, case.seed + 2)
    x = x.to(case.device)
    draws = (
        partial(npe.sample_batched, reject_outside_prior=False),
        flow.sample_batched,
        corrected.sample_batched,
    )
    rounds = [
        [
            seconds(partial(draw, (num,), x=x, show_progress_bars=False), case.device)
            for draw in draws
        ]
        for _ in range(effort.rounds)
    ]
    times = [list(of_one) for of_one in zip(*rounds, strict=True)]
    rates = [f"{num * len(x) / median(of_one):,.0f}" for of_one in times]
    to_npe, to_flow = (
        compare(iter(first).__next__, iter(second).__next__, effort.rounds)
        for first, second in pairwise(times)
    )
    return "\n\n".join(
        [
            f"`sample_batched(({num},), x)`, {len(x)} observations, of the three in turn "
            "(NPE, flow, corrected, NPE, ...). The last is "
            '`trainer.build_posterior(sample_with="energy")`. Ratios of times within a '
            "round, as median (lowest to highest).",
            table(
                ["posterior", "1/s", "ratio of times", "goal"],
                [
                    ["NPE", rates[0], "", ""],
                    ["JNPE, flow", rates[1], f"{to_npe} of NPE's", _goal(to_npe, 1)],
                    [
                        "JNPE, corrected",
                        rates[2],
                        f"{to_flow} of the flow's",
                        _goal(to_flow, 5),
                    ],
                ],
            ),
        ]
    )


def memory(cases: Iterable[Case]) -> str:
    """Compare the memory that training takes, each in a process of its own."""
    lines = []
    for case in cases:
        growth = []
        for method in ("npe", "jnpe"):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                threads = torch.get_num_threads()
                call = process.submit(peak_growth, method, asdict(case), threads)
                growth.append(call.result())
        lines.append([case.num_simulations, *(f"{g / 2**20:.0f}" for g in growth)])
    return _section(
        "Memory",
        "Growth of the peak during two epochs of training, in MiB, each in a process of "
        "its own: of the resident set (Linux), or on CUDA of the memory allocated there. "
        "Simulations were there before, but what a trainer copies of them counts.",
        table(["simulations", "NPE, MiB", "JNPE, MiB"], lines),
    )


def scaling(
    base: Case, effort: Effort, scales: Mapping[str, tuple[int, ...]] = SCALES
) -> str:
    """Compare steps as one quantity grows at a time, in milliseconds."""
    lines = []
    for name, values in scales.items():
        for value in values:
            changes: dict[str, Any] = {name: value}
            if name == "batch_size":
                changes["num_simulations"] = NUM_SIMULATIONS_FOR_BATCHES
            case = replace(base, **changes)
            npe, jnpe = NPESteps(case), JNPESteps(case)
            step = _compare_steps(npe, jnpe, effort)
            per_simulation = [t / case.batch_size * 1e6 for t in (step.npe, step.jnpe)]
            lines.append(
                [
                    f"{name} = {value:,}",
                    *_in_ms(step),
                    *(f"{time:.0f}" for time in per_simulation),
                    *(_ms(_begin_epoch(steps, effort)) for steps in (npe, jnpe)),
                ]
            )
    return _section(
        "Growth",
        f"From {base.num_simulations:,} simulations, D = {base.dim}, K = "
        f"{base.num_particles}, batches of {base.batch_size}, one quantity at a time "
        f"(large batches: of {NUM_SIMULATIONS_FOR_BATCHES:,} simulations). Steps as "
        "above; to begin an epoch is to draw its order and fetch one batch.",
        table(GROWTH_COLUMNS, lines),
    )


def peak_growth(
    method: Literal["npe", "jnpe"], case: dict[str, Any], threads: int
) -> int:
    """Train for two epochs in this process; return the growth of the peak, in bytes."""
    torch.set_num_threads(threads)
    setting = Case(**case)
    trainer = getattr(setting, method)()
    on_cuda = torch.device(setting.device).type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
        before = torch.cuda.memory_allocated(setting.device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
    with _max_num_epochs_expected():
        trainer.train(max_num_epochs=2, training_batch_size=setting.batch_size)
    if on_cuda:
        return torch.cuda.max_memory_allocated(setting.device) - before
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Return the resident set, "VmRSS", or its peak, "VmHWM", in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def _compare_steps(npe: Steps, jnpe: Steps, effort: Effort) -> Comparison:
    return compare(
        lambda: npe.seconds(effort.num_steps),
        lambda: jnpe.seconds(effort.num_steps),
        effort.rounds,
    )


def _begin_epoch(steps: Steps, effort: Effort) -> float:
    """Return the median time until an epoch has its first batch, in seconds."""
    return median(
        seconds(lambda: next(steps.epoch(0)), steps.device) for _ in range(effort.rounds)
    )


def _epoch(new_trainer: Callable[[], Any], case: Case, effort: Effort) -> float:
    """Train anew; return the median duration of an epoch, in seconds."""
    trainer = new_trainer()
    with _max_num_epochs_expected():
        trainer.train(
            training_batch_size=case.batch_size,
            max_num_epochs=NUM_WARM_UP_EPOCHS + effort.num_epochs,
        )
    return median(trainer.summary["epoch_durations_sec"][NUM_WARM_UP_EPOCHS:])


def _kernel_seconds(steps: Steps, num: int = 20) -> float:
    """Return how long the kernels of a step run on a CUDA device."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        steps.run(num)
        torch.cuda.synchronize()
    kernels = [event for event in record.events() if event.device_type == DeviceType.CUDA]
    return sum(event.self_device_time_total for event in kernels) / num / 1e6


@contextmanager
def _max_num_epochs_expected() -> Iterator[None]:
    """Say nothing of trainings that reach it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max_num_epochs")
        yield


def _goal(result: Comparison, most: float) -> str:
    return f"at most {most}: {'met' if result.ratio <= most else 'missed'}"


def _in_ms(result: Comparison) -> list[str]:
    return [_ms(result.npe), _ms(result.jnpe), str(result)]


def _ms(time: float) -> str:
    return f"{1e3 * time:.2f}"


def _section(title: str, note: str, lines: str) -> str:
    return f"## {title}\n\n{note}\n\n{lines}"
