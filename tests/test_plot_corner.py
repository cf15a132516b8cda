"""Corner plots: contours hold what they say, and all parameters can be read."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.path import Path

from sbi_jeffreys import plots
from sbi_jeffreys._arviz import inference_data
from sbi_jeffreys.plots.corner import pair_density
from sbi_jeffreys.plots.style import color_of
from tests.test_plots import leaves_nothing_behind, legend_of, rendered

__all__ = ["leaves_nothing_behind"]


def make_draws(dim, seed=0, num=1000):
    return np.random.default_rng(seed).normal(size=(num, dim))


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_it_has_a_panel_for_each_pair(tmp_path, dim):
    samples = {"flow": torch.tensor(make_draws(dim)), "energy": make_draws(dim, 1)}
    truth = np.linspace(-1, 1, dim)
    figure = rendered(
        plots.plot_corner(samples, truth=truth, reference=make_draws(dim, 2)), tmp_path
    )
    axes = figure.axes
    assert len(axes) == dim * (dim + 1) // 2
    assert legend_of(figure) == ["reference", "flow", "energy", "truth"]
    bottom = axes[-dim:]
    names = [f"theta_{i}" for i in range(dim)]
    assert [axis.get_xlabel() for axis in bottom] == names
    for axis, mark in zip(bottom, truth, strict=True):
        (line,) = (
            li
            for li in axis.lines
            if li.get_label() == "truth" and len(set(li.get_xdata())) == 1
        )
        assert line.get_xdata()[0] == mark
    for axis in bottom:
        labels = [t.get_window_extent() for t in axis.get_xticklabels() if t.get_text()]
        assert len(labels) >= 2
        assert not any(a.overlaps(b) for a, b in pairwise(labels))


def test_marginals_are_densities_of_the_draws(tmp_path):
    figure = rendered(plots.plot_corner({"flow": make_draws(2)}), tmp_path)
    curve = figure.axes[0].lines[0]
    assert curve.get_color() == color_of("flow")
    x, y = curve.get_xdata(), curve.get_ydata()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
    assert x @ y / y.sum() == pytest.approx(make_draws(2)[:, 0].mean(), abs=0.05)
    assert not figure.legends


def test_contours_hold_half_and_nine_tenths_of_the_draws():
    """Of the draws themselves, and those of the normal have its radii, within 8 %."""
    draws = make_draws(2, num=20_000)
    figure = plots.plot_corner(draws)
    (contours,) = figure.axes[1].collections
    outer, inner = (max(path.to_polygons(), key=len) for path in contours.get_paths())
    for polygon, share in ((outer, 0.9), (inner, 0.5)):
        held = Path(polygon).contains_points(draws).mean()
        assert held == pytest.approx(share, abs=0.01)
        radii = np.linalg.norm(polygon, axis=1)
        assert radii.mean() == pytest.approx(np.sqrt(-2 * np.log(1 - share)), rel=0.08)


def test_a_ridge_stays_narrow():
    """Its correlation is 0.995: what holds 90 % has an area near the exact one."""
    draws = make_draws(2, num=5000)
    draws[:, 1] = draws[:, 0] + 0.1 * draws[:, 1]
    x, y, values, levels = pair_density(draws)
    area = (values > levels[0]).sum() * (x[0, 1] - x[0, 0]) * (y[1, 0] - y[0, 0])
    assert area == pytest.approx(np.pi * 0.1 * -2 * np.log(0.1), rel=0.1)
    figure = plots.plot_corner(draws)
    (contours,) = figure.axes[1].collections
    assert [len(path.to_polygons()) for path in contours.get_paths()] == [1, 1]


def test_a_density_that_ends_at_a_bound_is_not_smoothed_away():
    """Of a uniform density, that at the edges is that of the middle, within 25 %."""
    draws = np.random.default_rng(0).random((20_000, 2))
    inner = pair_density(draws).values[1:-1, 1:-1]
    edge = np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])
    assert edge.mean() == pytest.approx(inner[40:60, 40:60].mean(), rel=0.25)


def test_exports_names_and_limits_are_taken(tmp_path, container):
    data = inference_data(
        {"posterior": {"rate": make_draws(1)[None, :, 0], "theta": make_draws(2)[None]}}
    )
    figure = rendered(plots.plot_corner(data), tmp_path)
    labels = [axis.get_xlabel() for axis in figure.axes[-3:]]
    assert labels == ["rate", "theta[0]", "theta[1]"]
    limits = [[-1, 1], [-2, 2], [-3, 3]]
    figure = plots.plot_corner({"flow": data}, names=["a", "b", "c"], limits=limits)
    assert [axis.get_xlabel() for axis in figure.axes[-3:]] == ["a", "b", "c"]
    assert [list(axis.get_xlim()) for axis in figure.axes[-3:]] == limits


def test_a_parameter_that_does_not_vary_is_a_line(tmp_path):
    draws = make_draws(2)
    draws[:, 1] = 3.0
    figure = rendered(plots.plot_corner(draws, truth=[0.0, np.nan]), tmp_path)
    assert set(figure.axes[2].lines[0].get_xdata()) == {3.0}


def test_the_truth_of_one_parameter_is_in_the_legend(tmp_path):
    figure = rendered(plots.plot_corner(make_draws(2), truth=[np.nan, 0.0]), tmp_path)
    assert legend_of(figure) == ["posterior", "truth"]
    assert len(figure.axes[0].lines) == 1


def test_parameters_that_are_whole_numbers_are_drawn(tmp_path):
    """All draws have the same density, so both contours have one level."""
    draws = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(100, 0)
    figure = rendered(plots.plot_corner(draws, reference=draws), tmp_path)
    assert legend_of(figure) == ["reference", "posterior"]
    *_, pair = [axis for axis in figure.axes if axis.collections and not axis.lines]
    levels = [set(contours.levels) for contours in pair.collections]
    assert len(levels) == 2
    assert all(len(each) >= 1 for each in levels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": {}}, "at least one posterior, got none"),
        ({"samples": np.zeros(3)}, r"of shape \(N, D\), got \(3,\)"),
        ({"samples": {"a": make_draws(2), "b": make_draws(3)}}, r"`samples\['b'\]` .*2"),
        ({"samples": np.full((5, 2), np.nan)}, "10 values that are not finite"),
        ({"reference": make_draws(3)}, r"`reference` to be finite, of shape \(N, 2\)"),
        ({"truth": [0.0]}, r"`truth` of shape \(2,\), got .* \(1,\)"),
        ({"names": ["a"]}, "2 `names`"),
        ({"limits": [0.0, 1.0]}, r"`limits` of shape \(2, 2\), got \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_corner(**{"samples": make_draws(2), **arguments})
