"""Figures of samples in arviz's `InferenceData` or `DataTree`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sbi_jeffreys._arviz import hdi, is_inference_data, kde, labelled_draws
from sbi_jeffreys.plots.style import GREY, color_of, legend_below, panels

HDI_PROB = 0.94
MAX_PREDICTIONS = 100
"""Number of predictive samples that are drawn as lines."""
MIN_ENTRIES = 10
"""An x of fewer entries has no density of its own."""
MAX_WIDTH_RATIO = 20
"""Intervals whose widths differ by a larger factor do not share an axis."""


def plot_densities(
    data: Any,
    var_names: list[str] | None = None,
    reference: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw the density of each parameter, with all posteriors in one panel.

    The shaded part is the 94 % highest-density interval.

    Args:
        data: One `InferenceData` or `DataTree`, or several by name of the posterior.
        var_names: Names of the variables to draw; all by default.
        reference: Values to mark, such as true parameters, by name of the variable. Each
            has the variable's shape.

    Raises:
        TypeError: If `data` is of another type.
        ValueError: If `var_names` or `reference` do not fit the posteriors.
    """
    data = _by_name(data, "posterior")
    shapes = _shapes(data, "posterior", var_names)
    marks: list[float] = []
    for name, shape in shapes.items():
        values = np.asarray((reference or {}).get(name, np.full(shape, np.nan)))
        if values.shape != shape:
            raise ValueError(
                f"Expected `reference[{name!r}]` of shape {shape}, got {values.shape}."
            )
        marks += values.ravel().tolist()
    if unknown := set(reference or {}) - set(shapes):
        raise ValueError(f"Expected `reference` for {list(shapes)}, got also {unknown}.")
    labels, draws = _draws(data, shapes)
    with panels(len(labels), 3.0, 2.1) as (figure, axes):
        for i, (axis, mark) in enumerate(zip(axes, marks, strict=True)):
            for name, each in draws.items():
                _density(axis, each[:, i], color_of(name), name)
            if np.isfinite(mark):
                axis.axvline(mark, color=GREY, linestyle="--", linewidth=1, zorder=0)
            axis.set(title=labels[i], yticks=[], ylim=(0, None))
            axis.locator_params(axis="x", nbins=5)
            axis.spines["left"].set_visible(False)
        if len(data) > 1:
            legend_below(figure, axes[0])
    return figure


def plot_forest(data: Any, var_names: list[str] | None = None) -> Figure:
    """Draw medians, quartiles and 94 % highest-density intervals of each parameter.

    Parameters share one axis, unless one interval is 20 times as wide as another.

    Args:
        data: One `InferenceData` or `DataTree`, or several by name of the posterior.
        var_names: Names of the variables to draw; all by default.

    Raises:
        TypeError: If `data` is of another type.
        ValueError: If a posterior lacks a variable.
    """
    data = _by_name(data, "posterior")
    labels, draws = _draws(data, _shapes(data, "posterior", var_names))
    bounds = {
        name: np.array([hdi(column, HDI_PROB) for column in each.T])
        for name, each in draws.items()
    }
    widths = np.max([np.ptp(each, 1) for each in bounds.values()], 0)
    if widths.max() > MAX_WIDTH_RATIO * widths.min():
        rows = [[i] for i in range(len(labels))]
    else:
        rows = [list(range(len(labels)))]
    height = 0.22 * len(data) * len(rows[0]) + (0.4 if len(rows) > 1 else 0.9)
    with panels(len(rows), 5.0, height, columns=1) as (figure, axes):
        for axis, shown in zip(axes, rows, strict=True):
            where = np.linspace(-0.35, 0.35, 2 * len(data) + 1)[1::2]
            for shift, (name, each) in zip(where, draws.items(), strict=True):
                _forest(axis, each[:, shown], bounds[name][shown], shift, name)
            axis.set(yticks=range(len(shown)), yticklabels=[labels[i] for i in shown])
            axis.set_ylim(len(shown) - 0.5, -0.5)
            axis.grid(visible=False, axis="y")
        axes[0].set_title("Median, quartiles and 94 % interval")
        legend_below(figure, axes[0])
    return figure


def plot_predictive(data: Any, var_names: list[str] | None = None) -> Figure:
    """Draw densities of predicted and observed data, with a column for each posterior.

    Each thin line is the density of the entries of one predicted x. If x has fewer than
    ten entries, there are only the density of all predictions together and a line at each
    observed entry. Draws that have an x with NaN or infinite entries are left out.

    Args:
        data: One `InferenceData` or `DataTree`, or several by name of the posterior, with
            the groups `posterior_predictive` and `observed_data`.
        var_names: Names of the observed variables to draw; all by default.

    Raises:
        TypeError: If `data` is of another type or lacks a group.
        ValueError: If a posterior lacks a variable, or has no finite predictions.
    """
    data = _by_name(_by_name(data, "posterior_predictive"), "observed_data")
    names = list(_shapes(data, "observed_data", var_names))
    with panels(len(names) * len(data), 3.4, 2.6, len(data)) as (figure, axes):
        for column, (posterior, each) in enumerate(data.items()):
            for axis, name in zip(axes[column :: len(data)], names, strict=True):
                observed = each["observed_data"][name].values
                predicted = each["posterior_predictive"][name]
                predicted = predicted.transpose("chain", "draw", ...).values
                rows = _finite(predicted.reshape(-1, observed.size), posterior)
                _predictions(axis, rows, observed.ravel(), color_of(posterior))
                axis.set(xlabel=name, yticks=[], ylim=(0, None))
                axis.spines["left"].set_visible(False)
            axes[column].set_title(posterior)
        for row in range(len(names)):
            of_row = axes[row * len(data) : (row + 1) * len(data)]
            limits = np.array([axis.get_xlim() for axis in of_row])
            for axis in of_row:
                axis.set_xlim(limits[:, 0].min(), limits[:, 1].max())
        legend_below(figure, axes[0])
    return figure


def _density(axis: Axes, draws: np.ndarray, color: str, label: str) -> None:
    """Draw the density of draws `(N,)`, and shade their interval."""
    if np.ptp(draws) == 0:
        axis.axvline(draws[0], color=color, label=label)
        return
    grid, density = kde(draws)
    low, high = hdi(draws, HDI_PROB)
    axis.plot(grid, density, color=color, label=label)
    axis.fill_between(
        grid, density, where=(grid >= low) & (grid <= high), color=color, alpha=0.12, lw=0
    )


def _forest(
    axis: Axes, draws: np.ndarray, bounds: np.ndarray, shift: float, name: str
) -> None:
    """Draw intervals of draws `(N, P)` with bounds `(P, 2)`, at rows 0 to P − 1."""
    low, median, high = np.quantile(draws, [0.25, 0.5, 0.75], 0)
    where, color = np.arange(len(bounds)) + shift, color_of(name)
    axis.hlines(where, *bounds.T, color=color, linewidth=1.2)
    axis.hlines(where, low, high, color=color, linewidth=3.5)
    axis.plot(median, where, "o", color=color, mfc="white", ms=4.5, label=name)


def _finite(predicted: np.ndarray, posterior: str) -> np.ndarray:
    """Return those predictions `(N, entries)` of a posterior that are finite."""
    finite = predicted[np.isfinite(predicted).all(-1)]
    if not len(finite):
        raise ValueError(
            f"Expected finite draws in `posterior_predictive` of {posterior!r}, got none."
        )
    return finite


def _predictions(
    axis: Axes, predicted: np.ndarray, observed: np.ndarray, color: str
) -> None:
    """Draw predictions `(N, entries)` and the observation `(entries,)`."""
    if len(observed) < MIN_ENTRIES:
        for i, value in enumerate(observed):
            axis.axvline(value, color="black", label="" if i else "observed")
    else:
        style: dict[str, Any] = {"color": color, "alpha": 0.2, "linewidth": 0.7}
        step = -(-len(predicted) // MAX_PREDICTIONS)
        for i, each in enumerate(predicted[::step]):
            label = "" if i else "predicted"
            axis.plot(*kde(each, bounded=False), **style, label=label)
        axis.plot(*kde(observed, bounded=False), color="black", label="observed")
    together = kde(predicted.ravel(), bounded=False)
    axis.plot(*together, color=color, linestyle="--", label="all predictions")


def _by_name(data: Any, group: str) -> Mapping[str, Any]:
    """Return data by name of the posterior, after a check that all have the group."""
    named = {"posterior": data} if is_inference_data(data) else data
    if not isinstance(named, Mapping) or not named:
        empty = " (empty)" if isinstance(named, Mapping) else ""
        raise TypeError(
            "Expected `data` to be InferenceData or DataTree, or to map names to these, "
            f"got {type(data).__name__}{empty}."
        )
    for name, each in named.items():
        if not (is_inference_data(each) and group in each):
            raise TypeError(
                f"Expected `data[{name!r}]` to be InferenceData or DataTree with the "
                f"group {group!r}, got {each!r}."
            )
    return named


def _draws(
    data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return P labels, and draws `(N, P)` by name of the posterior."""
    labelled = {name: labelled_draws(each, list(shapes)) for name, each in data.items()}
    labels = next(iter(labelled.values()))[0]
    return labels, {name: d.reshape(-1, d.shape[-1]) for name, (_, d) in labelled.items()}


def _shapes(
    data: Mapping[str, Any], group: str, var_names: list[str] | None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the variables, which all posteriors must have."""
    shapes = [
        {str(name): array.shape for name, array in each[group].data_vars.items()}
        for each in data.values()
    ]
    first = shapes[0]
    skip = 2 if group == "posterior" else 0
    wanted = list(first) if var_names is None else var_names
    for name, each in zip(data, shapes, strict=True):
        if lacking := [v for v in wanted if v not in each]:
            raise ValueError(
                f"Expected variables {wanted}, but {name!r} lacks {lacking}."
            )
    return {name: first[name][skip:] for name in wanted}
