"""Steps of JNPE beside those of sbi's NPE, as one quantity grows at a time."""

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.report import section, table
from benchmarks.speed.contenders import (
    Case,
    JNPESteps,
    NPESteps,
    Steps,
    milliseconds,
    seconds,
)
from benchmarks.speed.effort import Effort
from benchmarks.speed.steps import compare_steps

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


def growth(
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
            step = compare_steps(npe, jnpe, effort)
            per_simulation = [t / case.batch_size * 1e6 for t in (step.npe, step.jnpe)]
            lines.append(
                [
                    f"{name} = {value:,}",
                    *step.in_ms(),
                    *(f"{time:.0f}" for time in per_simulation),
                    *(milliseconds(_begin_epoch(steps, effort)) for steps in (npe, jnpe)),
                ]
            )
    return section(
        "Growth",
        f"One quantity at a time is changed from {base.num_simulations:,} simulations, "
        f"D = {base.dim}, K = {base.num_particles} and batches of {base.batch_size}. "
        f"Batch sizes are changed with {NUM_SIMULATIONS_FOR_BATCHES:,} simulations. "
        "Steps are measured as above. To begin an epoch is to draw its order and fetch "
        "one batch.",
        table(GROWTH_COLUMNS, lines),
    )


def _begin_epoch(steps: Steps, effort: Effort) -> float:
    """Return the median time in seconds until an epoch has its first batch."""
    return median(
        seconds(lambda: next(steps.epoch(0)), steps.device) for _ in range(effort.rounds)
    )
