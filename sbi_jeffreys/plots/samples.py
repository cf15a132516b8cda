"""Figures of samples in arviz's `InferenceData`, drawn by arviz 0.x."""

from collections.abc import Mapping
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sbi_jeffreys._arviz import load_arviz
from sbi_jeffreys.plots.style import GREY, color_of, legend_below, panels

HDI_PROB = 0.94
MAX_PREDICTIONS = 100
"""Number of predictive samples that are drawn as lines."""


def plot_densities(
    data: Any,
    var_names: list[str] | None = None,
    reference: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw the density of each parameter, with all posteriors in one panel.

    Args:
        data: One `InferenceData`, or several by name of the posterior.
        var_names: Names of the variables to draw; all by default.
        reference: Values to mark, such as true parameters, by name of the variable. Each
            has the variable's shape.

    Raises:
        TypeError: If `data` is of another type.
        ValueError: If `var_names` or `reference` do not fit the posteriors.
        ImportError: If arviz 1 is installed, which draws this with `arviz.plot_dist`.
    """
    arviz, data = _arviz_and_named(data, "posterior", "plot_dist")
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
    with panels(len(marks), 3.0, 2.1) as (figure, axes):
        arviz.plot_density(
            list(data.values()),
            data_labels=list(data),
            var_names=list(shapes),
            colors=[color_of(name) for name in data],
            hdi_prob=HDI_PROB,
            point_estimate=None,
            shade=0.1,
            textsize=9,
            ax=np.array(axes),
            show=False,
        )
        for axis, mark in zip(axes, marks, strict=True):
            axis.title.set_text(axis.get_title().replace("\n", " "))
            if np.isfinite(mark):
                axis.axvline(mark, color=GREY, linestyle="--", linewidth=1, zorder=0)
        if len(data) > 1:
            legend_below(figure, axes[0])
    return figure


def plot_forest(data: Any, var_names: list[str] | None = None) -> Figure:
    """Draw medians, quartiles and 94 % highest-density intervals of each parameter.

    Args:
        data: One `InferenceData`, or several by name of the posterior.
        var_names: Names of the variables to draw; all by default.

    Raises:
        TypeError: If `data` is of another type.
        ValueError: If a posterior lacks a variable.
        ImportError: If arviz 1 is installed, which draws this with `arviz.plot_forest`.
    """
    arviz, data = _arviz_and_named(data, "posterior", "plot_forest")
    shapes = _shapes(data, "posterior", var_names)
    rows = len(data) * sum(map(prod, shapes.values()))
    with panels(1, 5.0, 0.9 + 0.22 * rows) as (figure, (axis,)):
        arviz.plot_forest(
            list(data.values()),
            model_names=list(data),
            var_names=list(shapes),
            combined=True,
            colors=[color_of(name) for name in data],
            hdi_prob=HDI_PROB,
            textsize=9,
            linewidth=1.5,
            markersize=4,
            ax=axis,
            show=False,
        )
        axis.set_title("Median, quartiles and 94 % interval")
        for name in data:
            axis.plot([], color=color_of(name), label=name)
        legend_below(figure, axis)
    return figure


def plot_predictive(data: Any, var_names: list[str] | None = None) -> Figure:
    """Draw densities of predicted and observed data, with a column for each posterior.

    Each thin line is the density of the entries of one predicted x.

    Args:
        data: One `InferenceData`, or several by name of the posterior, with the groups
            `posterior_predictive` and `observed_data`.
        var_names: Names of the observed variables to draw; all by default.

    Raises:
        TypeError: If `data` is of another type or lacks a group.
        ValueError: If a posterior lacks a variable.
        ImportError: If arviz 1 is installed, which draws this with
            `arviz.plot_ppc_dist`.
    """
    arviz, data = _arviz_and_named(data, "posterior_predictive", "plot_ppc_dist")
    _arviz_and_named(data, "observed_data", "plot_ppc_dist")
    names = list(_shapes(data, "observed_data", var_names))
    with panels(len(names) * len(data), 3.4, 2.6, len(data)) as (figure, axes):
        for column, (name, each) in enumerate(data.items()):
            some = axes[column :: len(data)]
            step = max(1, each.posterior_predictive.sizes["draw"] // MAX_PREDICTIONS)
            arviz.plot_ppc(
                each.isel(draw=slice(None, None, step)),
                var_names=names,
                colors=[color_of(name), "black", GREY],
                textsize=9,
                legend=False,
                ax=np.array(some),
                show=False,
            )
            some[0].set_title(name)
        for row in range(len(names)):
            of_row = axes[row * len(data) : (row + 1) * len(data)]
            limits = np.array([axis.get_xlim() for axis in of_row])
            for axis in of_row:
                axis.set_xlim(limits[:, 0].min(), limits[:, 1].max())
        legend_below(figure, axes[0])
    return figure


def _arviz_and_named(
    data: Any, group: str, in_arviz_1: str
) -> tuple[ModuleType, Mapping[str, Any]]:
    """Return arviz and data by name. Check arviz's version and the group."""
    arviz = load_arviz()
    if not hasattr(arviz, "InferenceData"):
        raise ImportError(
            f"Expected arviz 0, got {arviz.__version__}. There, `arviz.{in_arviz_1}` "
            "draws the same data."
        )
    named = {"posterior": data} if isinstance(data, arviz.InferenceData) else data
    if not isinstance(named, Mapping) or not named:
        raise TypeError(
            "Expected `data` to be InferenceData, or to map names to InferenceData, got "
            f"{type(data).__name__}{' (empty)' if isinstance(named, Mapping) else ''}."
        )
    for name, each in named.items():
        if not (isinstance(each, arviz.InferenceData) and group in each.groups()):
            raise TypeError(
                f"Expected `data[{name!r}]` to be InferenceData with the group "
                f"{group!r}, got {each!r}."
            )
    return arviz, named


def _shapes(
    data: Mapping[str, Any], group: str, var_names: list[str] | None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the variables, which all posteriors must have."""
    shapes = [
        {str(name): array.shape for name, array in each[group].items()}
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
