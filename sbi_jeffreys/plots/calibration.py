"""Figures of calibration: ranks, coverage and TARP, for one or several posteriors."""

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from sbi_jeffreys._arviz import non_uniform
from sbi_jeffreys.diagnostics.ranks import Calibration
from sbi_jeffreys.plots.style import GREY, RED, color_of, legend_below, panels

NUM_POINTS = 100
BAND: dict[str, Any] = {"color": "0.5", "alpha": 0.2, "linewidth": 0, "label": "95 %"}


def plot_ranks(calibrations: Calibration | Mapping[str, Calibration]) -> Figure:
    """Draw the ECDF of SBC ranks minus that of uniform ranks, for each parameter.

    The grey band is simultaneous: for one parameter, 95 % of calibrated posteriors stay
    inside it over its whole width (Säilynoja et al. 2022). With arviz-stats 1.1 or newer,
    red dots mark the ranks that stand out in the test `pot_c`, which arviz recommends.
    That test, too, has no dots for 95 % of calibrated posteriors. The shape of a curve
    that leaves the band or has dots tells the error:

    - up, then down: the posterior is too narrow;
    - down, then up: the posterior is too wide;
    - only up: samples are too high;
    - only down: samples are too low.

    Args:
        calibrations: One calibration, or several by name, of the same simulations.

    Raises:
        ValueError: If the calibrations differ in parameters or number of simulations.
    """
    named, first = _same_simulations(calibrations)
    any_dots = False
    with panels(len(first.parameter_names)) as (figure, axes):
        colors = {name: color_of(name) for name in named}
        for axis, parameter in zip(axes, first.parameter_names, strict=True):
            any_dots |= draw_ranks(axis, named, parameter, colors)
            axis.set(title=parameter, xlabel="rank / S")
        if any_dots:
            label_dots(axes[0])
        axes[0].set_ylabel("ECDF − uniform")
        legend_below(figure, axes[0])
    return figure


def plot_tarp(calibrations: Calibration | Mapping[str, Calibration]) -> Figure:
    """Draw the expected coverage probability of TARP's regions against their level.

    In the right half of the figure, a curve above the diagonal means that the posterior
    is too wide. A curve below it means that the posterior is too narrow. The grey band is
    the same as in `plot_ranks`.

    Args:
        calibrations: One calibration, or several by name, of the same simulations.

    Raises:
        ValueError: If the calibrations differ in parameters or number of simulations.
    """
    named, _ = _same_simulations(calibrations)
    with panels(1, 3.6, 3.4) as (figure, (axis,)):
        draw_tarp(axis, named, {name: color_of(name) for name in named})
        axis.set_title("TARP, all parameters together")
        axis.legend()
    return figure


def plot_coverage(calibrations: Calibration | Mapping[str, Calibration]) -> Figure:
    """Draw how often central intervals contain each parameter, against their level.

    A curve above the diagonal means that the posterior is too wide. A curve below it
    means that the posterior is too narrow or biased. The grey band contains 95 % of
    calibrated posteriors at each single level.

    Args:
        calibrations: One calibration, or several by name, of the same simulations.

    Raises:
        ValueError: If the calibrations differ in parameters or number of simulations.
    """
    named, first = _same_simulations(calibrations)
    levels = grid_of(first)
    margin = 1.96 * first.coverage(levels).standard_error[:, 0]
    curves = {name: each.coverage(levels).coverage for name, each in named.items()}
    with panels(len(first.parameter_names), 2.8, 2.7) as (figure, axes):
        for i, axis in enumerate(axes):
            axis.fill_between(levels, levels - margin, levels + margin, **BAND)
            for name, curve in curves.items():
                axis.plot(levels, curve[:, i], color=color_of(name), label=name)
            _diagonal(axis)
            axis.set(title=first.parameter_names[i], xlabel="level of central interval")
        axes[0].set_ylabel("fraction that contain it")
        legend_below(figure, axes[0])
    return figure


def draw_ranks(
    axis: Axes,
    named: Mapping[str, Calibration],
    parameter: str,
    colors: Mapping[str, str],
) -> bool:
    """Draw the band and curves of `plot_ranks`, and return whether there are red dots."""
    first = next(iter(named.values()))
    points = grid_of(first)
    low, high = _band(len(first.ranks), points)
    axis.fill_between(points, low - points, high - points, **BAND)
    any_dots = False
    for name, calibration in named.items():
        pit = np.sort(calibration.pit[parameter])
        ecdf = _ecdf(pit, points)
        axis.plot(points, ecdf - points, color=colors[name], label=name)
        dots = pit[non_uniform(pit, 0.05)]
        axis.plot(dots, _ecdf(pit, dots) - dots, ".", color=RED, markersize=3)
        any_dots |= len(dots) > 0
    axis.axhline(0, color=GREY, linewidth=0.7)
    axis.set_xlim(0, 1)
    return any_dots


def label_dots(axis: Axes) -> None:
    """Label the red dots of `draw_ranks` for a legend."""
    axis.plot([], [], ".", color=RED, label="pot_c: p < 0.05")


def draw_tarp(
    axis: Axes, named: Mapping[str, Calibration], colors: Mapping[str, str]
) -> None:
    """Draw the band and curves of `plot_tarp`."""
    first = next(iter(named.values()))
    points = grid_of(first)
    axis.fill_between(points, *_band(len(first.ranks), points), **BAND)
    for name, calibration in named.items():
        axis.plot(calibration.alpha, calibration.ecp, color=colors[name], label=name)
    _diagonal(axis)
    axis.set(xlabel="credibility level α", ylabel="expected coverage probability")


def _same_simulations(
    calibrations: Calibration | Mapping[str, Calibration],
) -> tuple[Mapping[str, Calibration], Calibration]:
    """Return the calibrations by name, and the first of them."""
    named = cast(
        Mapping[str, Calibration],
        calibrations
        if isinstance(calibrations, Mapping)
        else {"posterior": calibrations},
    )
    settings = {(c.parameter_names, len(c.ranks)) for c in named.values()}
    if len(settings) != 1:
        raise ValueError(
            "Expected `calibrations` with equal parameters and numbers of simulations, "
            f"got {sorted(settings)}."
        )
    return named, next(iter(named.values()))


def grid_of(calibration: Calibration) -> np.ndarray:
    """Return points in (0, 1) where the ECDF of uniform ranks equals the uniform CDF."""
    num = calibration.num_posterior_samples + 1
    return np.unique(np.linspace(1, num - 1, NUM_POINTS).round()) / num


def _ecdf(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the fraction of sorted values that are no larger than each point."""
    return np.searchsorted(values, points, side="right") / len(values)


@cache
def _level(num: int, points: tuple[float, ...]) -> float:
    """Return at which level a test at each point holds 95 % of uniform ECDFs."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(num, np.diff([0, *points, 1]), 2000)[:, :-1].cumsum(-1)
    below = binom.cdf(counts, num, points)
    above = binom.sf(counts - 1, num, points)
    return float(np.quantile(2 * np.minimum(below, above).min(-1), 0.05))


def _band(num: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds that hold 95 % of the whole ECDFs of `num` uniform numbers.

    Binomial intervals of the same level at each point. That level is found by simulation,
    as in Säilynoja et al. (2022), section 2.2.
    """
    level = _level(num, tuple(points.tolist()))
    low, high = (binom.ppf(tail, num, points) for tail in (level / 2, 1 - level / 2))
    return low / num, high / num


def _diagonal(axis: Axes) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.7, linestyle="--")
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
