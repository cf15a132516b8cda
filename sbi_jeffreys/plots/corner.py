"""Corner plot: marginal densities of all parameters and of all pairs of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from sbi_jeffreys._arviz import bandwidth, is_inference_data, kde, labelled_draws
from sbi_jeffreys.plots.style import color_of, legend_below, panels

PROBABILITIES = (0.9, 0.5)
"""Probabilities in the highest-density regions that are drawn."""
NUM_BINS = 100
"""Bins of each axis for densities of pairs."""
MIN_CORRELATION = 0.5
"""Above this correlation a density is smoothed along its ridge."""
SHOWN = (0.002, 0.998)
"""Quantiles of the draws that are inside the axes."""
GREYS = ("0.85", "0.7")


class Density(NamedTuple):
    """Density of a pair of parameters on a grid, up to a factor.

    Attributes:
        x: Coordinates of the grid's points on the horizontal axis, shape `(G, G)`.
        y: Coordinates on the vertical axis, shape `(G, G)`.
        values: Densities, shape `(G, G)`.
        levels: Densities that are exceeded at these `PROBABILITIES` of draws.
    """

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    levels: np.ndarray


def plot_corner(
    samples: Any | Mapping[str, Any],
    truth: ArrayLike | None = None,
    reference: Any = None,
    names: Sequence[str] | None = None,
    limits: ArrayLike | None = None,
) -> Figure:
    """Draw the density of each parameter and each pair, with all posteriors in a panel.

    Contours hold 50 % and 90 % of the draws where they are densest. Samples of a
    reference, such as MCMC, are grey areas. Black lines mark the true parameters.

    Args:
        samples: Samples by name of the posterior, or of a single one. Each is an array of
            shape `(N, D)`, or a result of `to_inference_data`.
        truth: D true parameters. NaN marks none.
        reference: Samples of the reference, as one of `samples`.
        names: D names of the parameters; those of the data, or "theta_0", "theta_1", ...
            by default.
        limits: Lower and upper ends of the axes, shape `(D, 2)`. By default, 99.6 % of
            all samples and the truth are inside.

    Raises:
        ValueError: If there are no posteriors, shapes differ, or samples are not finite.
    """
    named = samples if isinstance(samples, Mapping) else {"posterior": samples}
    if is_inference_data(samples):
        named = {"posterior": samples}
    if not named:
        raise ValueError("Expected `samples` of at least one posterior, got none.")
    labels, first = _labelled(next(iter(named.values())), "`samples`")
    dim = first.shape[1]
    draws = {
        name: _draws(each, f"`samples[{name!r}]`", dim) for name, each in named.items()
    }
    known = None if reference is None else _draws(reference, "`reference`", dim)
    labels = labels if names is None else list(names)
    marks = np.full(dim, np.nan) if truth is None else np.asarray(truth, dtype=float)
    if len(labels) != dim or marks.shape != (dim,):
        raise ValueError(
            f"Expected {dim} `names` and `truth` of shape ({dim},), got {labels} and "
            f"{marks.shape}."
        )
    every = [*draws.values(), *([] if known is None else [known])]
    ends = _limits(every, marks) if limits is None else np.asarray(limits, dtype=float)
    if ends.shape != (dim, 2):
        raise ValueError(f"Expected `limits` of shape ({dim}, 2), got {ends.shape}.")
    size = 3.2 if dim == 1 else min(2.0, 11 / dim)
    with panels(dim**2, size, size, dim) as (figure, axes):
        grid = np.reshape(np.array(axes, dtype=object), (dim, dim))
        for row in range(dim):
            for column in range(dim):
                axis = grid[row, column]
                if column > row:
                    axis.remove()
                    continue
                chosen = [column] if column == row else [column, row]
                if known is not None:
                    _draw(axis, known[:, chosen], "reference", filled=True)
                for name, each in draws.items():
                    _draw(axis, each[:, chosen], name, filled=False)
                _draw_truth(axis, marks[chosen])
                _format(axis, ends[chosen], labels, row, column)
        if len(every) > 1 or np.isfinite(marks).any():
            marked = int(np.argmax(np.isfinite(marks)))
            legend_below(figure, grid[marked, marked])
    return figure


def _draw(axis: Axes, draws: np.ndarray, name: str, filled: bool) -> None:
    """Draw the density of draws `(N, 1)` or `(N, 2)`."""
    color = color_of(name)
    if draws.shape[1] == 1:
        if np.ptp(draws) == 0:
            axis.axvline(draws[0, 0], color=color, label=name)
            return
        points, density = kde(draws[:, 0])
        if filled:
            axis.fill_between(points, density, color=GREYS[1], linewidth=0, label=name)
        else:
            axis.plot(points, density, color=color, label=name)
        return
    if (np.ptp(draws, 0) == 0).any():
        axis.plot(*draws.T, ",", color=color)
        return
    x, y, values, levels = pair_density(draws)
    if filled:
        axis.contourf(x, y, values, [*levels, values.max()], colors=GREYS)
    else:
        axis.contour(x, y, values, levels, colors=[color], linewidths=1.1)


def pair_density(draws: np.ndarray) -> Density:
    """Estimate the density of draws by a smoothed histogram.

    The smoothing of each parameter is that for one dimension, widened for two. Where the
    two are correlated by more than `MIN_CORRELATION`, the second is taken relative to its
    regression on the first, so that a ridge stays narrow. The density may end abruptly at
    the range of the draws, as a posterior does at the bounds of a prior.

    Args:
        draws: Shape `(N, 2)`; both columns vary.
    """
    first, second = draws.T
    covariance = np.cov(draws.T)
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    is_ridge = MIN_CORRELATION < abs(correlation) < 1 - 1e-6
    slope = covariance[0, 1] / covariance[0, 0] if is_ridge else 0.0
    rest = second - slope * first
    counts, *edges = np.histogram2d(first, rest, NUM_BINS)
    widths = np.array([bandwidth(each) for each in (first, rest)])
    widths *= len(draws) ** (1 / 5 - 1 / 6)
    steps = np.array([each[1] - each[0] for each in edges])
    smooth = gaussian_filter(counts, np.maximum(widths / steps, 0.5), mode="reflect")
    at_draws = np.repeat(smooth.ravel(), counts.ravel().astype(int))
    levels = np.quantile(at_draws, 1 - np.array(PROBABILITIES))
    levels *= 1 - 1e-6 * np.arange(len(levels), 0, -1)  # they rise even where draws tie
    x, y = np.meshgrid(*map(_middles, edges))
    return Density(x, y + slope * x, np.pad(smooth, 1).T, levels)


def _middles(edges: np.ndarray) -> np.ndarray:
    """Return the middles of bins, and of one more bin at each end, which is empty."""
    middles = (edges[1:] + edges[:-1]) / 2
    return np.pad(middles, 1, mode="reflect", reflect_type="odd")


def _draw_truth(axis: Axes, marks: np.ndarray) -> None:
    style: dict[str, Any] = {"color": "black", "linewidth": 0.8, "zorder": 3}
    for mark, line in zip(marks, (axis.axvline, axis.axhline), strict=False):
        if np.isfinite(mark):
            line(mark, **style, label="truth")


def _format(
    axis: Axes, ends: np.ndarray, labels: Sequence[str], row: int, column: int
) -> None:
    """Set limits, and ticks and labels at the left and at the bottom of the grid."""
    axis.grid(visible=False)
    axis.set_xlim(*ends[0])
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.tick_params("x", rotation=45 if len(labels) > 4 else 0)
    if row == len(labels) - 1:
        axis.set_xlabel(labels[column])
    else:
        axis.tick_params(labelbottom=False)
    if column == row:
        axis.set(yticks=[], ylim=(0, None))
        axis.spines["left"].set_visible(False)
        return
    axis.set_ylim(*ends[1])
    axis.yaxis.set_major_locator(MaxNLocator(3))
    if column == 0:
        axis.set_ylabel(labels[row])
    else:
        axis.tick_params(labelleft=False)


def _labelled(samples: Any, what: str) -> tuple[list[str], np.ndarray]:
    """Return D labels, and draws `(N, D)`."""
    if is_inference_data(samples):
        labels, draws = labelled_draws(samples)
        return labels, draws.reshape(-1, len(labels))
    draws = torch.as_tensor(samples).detach().cpu().double().numpy()
    if draws.ndim != 2 or len(draws) < 2:
        raise ValueError(f"Expected {what} of shape (N, D), got {draws.shape}.")
    return [f"theta_{i}" for i in range(draws.shape[1])], draws


def _draws(samples: Any, what: str, dim: int) -> np.ndarray:
    _, draws = _labelled(samples, what)
    if draws.shape[1] != dim or not np.isfinite(draws).all():
        raise ValueError(
            f"Expected {what} to be finite, of shape (N, {dim}), got {draws.shape} with "
            f"{(~np.isfinite(draws)).sum()} values that are not finite."
        )
    return draws


def _limits(every: Sequence[np.ndarray], marks: np.ndarray) -> np.ndarray:
    """Return ends of the axes, shape `(D, 2)`."""
    quantiles = [np.quantile(draws, SHOWN, 0) for draws in every]
    known = np.concatenate([*quantiles, marks[None]])
    low, high = np.nanmin(known, 0), np.nanmax(known, 0)
    margin = np.where(high > low, 0.05 * (high - low), 0.5)
    return np.stack([low - margin, high + margin], 1)
