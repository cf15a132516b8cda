"""One figure of all that held-out simulations say about a posterior."""

from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_jeffreys.diagnostics.diagnose import Diagnosis
from sbi_jeffreys.diagnostics.ranks import CONSISTENT, JOINT
from sbi_jeffreys.plots.calibration import (
    BAND,
    draw_ranks,
    draw_tarp,
    grid_of,
    label_dots,
)
from sbi_jeffreys.plots.style import GREY, PALETTE, RED, legend_below, panels

MAX_PARAMETERS = 8
NUM_SUMMARIES = 3


def plot_diagnosis(diagnosis: Diagnosis) -> Figure:
    """Draw recovery, calibration, coverage, contraction and TARP in one figure.

    - **Recovery**, for each parameter: posterior mean and standard deviation against the
      true value. Points on the diagonal are perfect.
    - **Ranks**, for each parameter, as in `plot_ranks`. The title has the verdict.
    - **Coverage** of central intervals minus their level. The band contains 95 % of exact
      posteriors at each single level. A curve below it: too narrow or biased.
    - **Contraction and z-score** of each simulation. For an exact posterior 95 % of
      z-scores or so are between the dashed lines at ±2, with a mean of 0.
    - **TARP**, as in `plot_tarp`.

    Of more than eight parameters the eight with the largest errors are drawn.

    Args:
        diagnosis: The result of `diagnose`.
    """
    shown = _largest_errors(diagnosis)
    names = [diagnosis.parameter_names[i] for i in shown]
    num = len(shown)
    columns = 4 if num == 2 or ceil(num / 4) < ceil(num / 3) else 3
    groups = [2 * num] if num <= 2 else [num, num]
    rows = [ceil(each / columns) for each in groups]
    with panels((sum(rows) + 1) * columns, 2.7, 2.25, columns) as (figure, axes):
        starts = np.cumsum([0, *rows]) * columns
        used: list[Axes] = []
        for start, size in zip(starts, [*groups, NUM_SUMMARIES], strict=True):
            used += axes[start : start + size]
        for axis in axes:
            if axis not in used:
                axis.remove()
        recovery, ranks = used[:num], used[num : 2 * num]
        coverage, contraction, tarp = used[2 * num :]
        any_dots = False
        for position, i in enumerate(shown):
            color = PALETTE[position]
            _draw_recovery(recovery[position], diagnosis, i, color)
            any_dots |= _draw_ranks(ranks[position], diagnosis, i, color)
        for axes_of_group, label in (
            (recovery, "posterior mean ± sd"),
            (ranks, "ECDF − uniform"),
        ):
            for axis in axes_of_group[::columns]:
                axis.set_ylabel(label)
        _draw_coverage(coverage, diagnosis, shown)
        _draw_contraction(contraction, diagnosis, shown)
        draw_tarp(tarp, {"": diagnosis.calibration}, {"": "black"})
        tarp.set_ylabel("coverage")
        _set_verdict(tarp, "TARP", diagnosis.verdicts[JOINT])
        if any_dots:
            label_dots(coverage)
        legend_below(figure, coverage)
        figure.suptitle(_title(diagnosis, names))
    return figure


def _largest_errors(diagnosis: Diagnosis) -> list[int]:
    """Return in order which parameters to draw."""
    calibration = diagnosis.calibration
    errors = np.maximum(np.abs(calibration.bias), np.abs(calibration.coverage_error))
    return sorted(np.argsort(-errors)[:MAX_PARAMETERS].tolist())


def _draw_recovery(axis: Axes, diagnosis: Diagnosis, i: int, color: str) -> None:
    truth, mean, sd = (
        each[:, i] for each in (diagnosis.theta, diagnosis.mean, diagnosis.sd)
    )
    axis.errorbar(
        truth, mean, sd, fmt=".", color=color, ms=3, elinewidth=0.5, alpha=0.5, mew=0
    )
    ends = [truth.min(), truth.max()]
    axis.plot(ends, ends, color=GREY, linewidth=0.7, linestyle="--")
    name, r_squared = diagnosis.parameter_names[i], diagnosis.recovery[i]
    axis.set(title=f"{name}: R² {r_squared:.2f}", xlabel="true value")


def _draw_ranks(axis: Axes, diagnosis: Diagnosis, i: int, color: str) -> bool:
    name = diagnosis.parameter_names[i]
    any_dots = draw_ranks(axis, {"": diagnosis.calibration}, name, {"": color})
    axis.set_xlabel("rank / S")
    _set_verdict(axis, name, diagnosis.verdicts[name])
    return any_dots


def _draw_coverage(axis: Axes, diagnosis: Diagnosis, shown: list[int]) -> None:
    levels = grid_of(diagnosis.calibration)
    coverage, standard_error = diagnosis.calibration.coverage(levels)
    margin = 1.96 * standard_error[:, 0]
    axis.fill_between(levels, -margin, margin, **BAND)
    for position, i in enumerate(shown):
        name = diagnosis.parameter_names[i]
        signed = coverage[:, i] - levels
        axis.plot(levels, signed, color=PALETTE[position], linewidth=1, label=name)
    axis.axhline(0, color=GREY, linewidth=0.7)
    axis.set(
        title="Coverage",
        xlabel="level of central interval",
        ylabel="coverage − level",
        xlim=(0, 1),
    )


def _draw_contraction(axis: Axes, diagnosis: Diagnosis, shown: list[int]) -> None:
    contraction, z_scores = diagnosis.contraction, diagnosis.z_scores
    for position, i in enumerate(shown):
        axis.plot(
            contraction[:, i],
            z_scores[:, i],
            ".",
            color=PALETTE[position],
            alpha=0.4,
            markersize=3,
            markeredgewidth=0,
        )
    for z, style in ((-2, "--"), (0, "-"), (2, "--")):
        axis.axhline(z, color=GREY, linewidth=0.7, linestyle=style)
    least = min(0.0, float(contraction[:, shown].min()))
    axis.set(
        title="Contraction and z-score",
        xlabel="1 − variance / prior's",
        ylabel="(mean − truth) / sd",
        xlim=(max(least, -1.0) - 0.02, 1.02),
    )


def _set_verdict(axis: Axes, what: str, verdict: str) -> None:
    color = "black" if verdict == CONSISTENT else RED
    axis.set_title(f"{what}: {verdict}", color=color)


def _title(diagnosis: Diagnosis, names: list[str]) -> str:
    total = len(diagnosis.parameter_names)
    title = f"{len(diagnosis.theta)} simulations"
    if len(names) < total:
        title += f", the {len(names)} of {total} parameters with the largest errors"
    lines = [title]
    lines += [
        f"{value}: {verdict}" if check == "agreement" else f"{check} {value}"
        for check, value, verdict in diagnosis.checks.itertuples(index=False)
        if check != JOINT
    ]
    return "\n".join(lines)
