"""Steps and whole epochs of JNPE beside those of sbi's NPE."""

from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import section, table
from benchmarks.speed.contenders import (
    Case,
    Comparison,
    JNPESteps,
    NPESteps,
    Steps,
    compare,
)
from benchmarks.speed.effort import Effort, max_num_epochs_expected

NUM_WARM_UP_EPOCHS = 2


def steps_and_epochs(cases: Iterable[Case], effort: Effort) -> str:
    """Compare steps and whole epochs, in milliseconds."""
    columns = ["simulations", "D", "batch", "K", "per", "NPE, ms", "JNPE, ms", "ratio"]
    lines: list[list[Any]] = []
    for case in cases:
        shape = [case.num_simulations, case.dim, case.batch_size, case.num_particles]
        npe, jnpe = NPESteps(case), JNPESteps(case)
        step = compare_steps(npe, jnpe, effort)
        lines.append([*shape, "step", *step.in_ms()])
        if torch.device(case.device).type == "cuda":
            shares = _kernel_seconds(npe) / step.npe, _kernel_seconds(jnpe) / step.jnpe
            busy = [f"{share:.0%}" for share in shares]
            lines.append([*shape, "step, share of it that kernels run", *busy, ""])
        epoch = compare(
            partial(_epoch, case.npe, case, effort),
            partial(_epoch, case.jnpe, case, effort),
            effort.rounds,
        )
        lines.append([*shape, "epoch", *epoch.in_ms()])
    return section(
        "Steps and epochs",
        'NPE ("nsf") and JNPE take turns. Times are medians over rounds. Ratios are '
        "taken within a round: median (lowest to highest). A step fetches its batch. An "
        "epoch is what `epoch_durations_sec` reports, with validation, after "
        f"{NUM_WARM_UP_EPOCHS} epochs of warm-up. It does not count work between epochs: "
        "sbi's copy of better weights and JNPE's checkpoint. JNPE makes the C library "
        "keep freed memory for the process, so NPE's steps benefit from this here.",
        table(columns, lines),
    )


def compare_steps(npe: Steps, jnpe: Steps, effort: Effort) -> Comparison:
    """Compare single steps, in seconds."""
    return compare(
        lambda: npe.seconds(effort.num_steps),
        lambda: jnpe.seconds(effort.num_steps),
        effort.rounds,
    )


def _epoch(new_trainer: Callable[[], Any], case: Case, effort: Effort) -> float:
    """Train a new trainer and return the median seconds of an epoch."""
    trainer = new_trainer()
    with max_num_epochs_expected():
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
