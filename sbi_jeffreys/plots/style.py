"""How figures look: one style, and one colour for a posterior in all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
GREY, RED, PURPLE = "0.45", "#B22222", "#7B4F9D"
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A5C3E",
    "#332288",
    "#882255",
    "#A0A02C",
)
"""Colours of which the colour-blind can tell the first six apart, after Okabe and Ito."""

_COLORS = {
    "flow": PALETTE[0],
    "posterior": PALETTE[0],
    "energy": PALETTE[1],
    "MCMC": GREY,
    "reference": GREY,
}


def color_of(name: str) -> str:
    """Return the colour of a posterior, the same as long as the process runs.

    "flow", "energy", "MCMC" and "reference" have theirs; other names get the next that is
    free, in the order in which they come; after eight of these, colours come again.
    """
    if name not in _COLORS:
        free = [color for color in PALETTE if color not in _COLORS.values()]
        _COLORS[name] = free[0] if free else PALETTE[len(_COLORS) % len(PALETTE)]
    return _COLORS[name]


@contextmanager
def panels(
    num: int, width: float = 3.4, height: float = 2.5, columns: int = 3
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a new figure with `num` axes in rows, and draw in this package's style.

    The figure is not one of pyplot's: it needs no closing and no display.

    Args:
        num: Number of axes.
        width: Of each, in inches.
        height: Likewise.
        columns: Most axes in a row.
    """
    columns = min(num, columns)
    rows = ceil(num / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False)).tolist()
        for axis in axes[num:]:
            axis.remove()
        yield figure, axes[:num]


def legend_below(figure: Figure, axis: Axes) -> None:
    """Put what is labelled in the axis into a legend of the whole figure."""
    if (legend := axis.get_legend()) is not None:
        legend.remove()
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
