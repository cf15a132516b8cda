"""The look of figures: one style, and one colour for each posterior in all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
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
"""Colours after Okabe and Ito. The first six are safe for the colour-blind."""

_COLORS = {
    "flow": PALETTE[0],
    "posterior": PALETTE[0],
    "energy": PALETTE[1],
    "MCMC": GREY,
    "reference": GREY,
}


def color_of(name: str) -> str:
    """Return the colour of a posterior, which is fixed for the life of the process.

    The names "flow", "posterior", "energy", "MCMC" and "reference" have fixed colours.
    Every other name gets the next free colour when it is first used. Colours repeat after
    eight other names.
    """
    if name not in _COLORS:
        free = [color for color in PALETTE if color not in _COLORS.values()]
        _COLORS[name] = free[0] if free else PALETTE[len(_COLORS) % len(PALETTE)]
    return _COLORS[name]


class ShownFigure(Figure):
    """A figure that notebooks show although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


@contextmanager
def panels(
    num: int, width: float = 3.4, height: float = 2.5, columns: int = 3
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a new figure with `num` axes in rows, and apply this package's style.

    Pyplot does not know the figure, so it needs no display and no closing.

    Args:
        num: Number of axes.
        width: Width of one axis, in inches.
        height: Height of one axis, in inches.
        columns: Largest number of axes in a row.
    """
    columns = min(num, columns)
    rows = ceil(num / columns)
    with rc_context(STYLE):
        size = (width * columns, height * rows)
        figure = ShownFigure(figsize=size, layout="constrained")
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False)).tolist()
        for axis in axes[num:]:
            axis.remove()
        yield figure, axes[:num]


def legend_below(figure: Figure, axis: Axes) -> None:
    """Make a legend below the figure for everything that is labelled in one axis."""
    if (legend := axis.get_legend()) is not None:
        legend.remove()
    handles, labels = axis.get_legend_handles_labels()
    inches = 0.5 + 0.07 * max(map(len, labels))  # of an entry, at STYLE's size of fonts
    columns = min(len(labels), max(1, int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
