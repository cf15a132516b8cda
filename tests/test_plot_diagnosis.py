"""The figure of a diagnosis shows its numbers, at one to ten parameters."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from sbi_jeffreys import diagnose, plots
from sbi_jeffreys.plots.style import PALETTE, RED
from tests.closed_forms import ConjugateGaussian
from tests.test_plots import leaves_nothing_behind, legend_of, lines, rendered

__all__ = ["leaves_nothing_behind"]


class Narrow:
    """The exact posterior, with the last parameter half as wide."""

    def __init__(self, dim):
        self.flow = ConjugateGaussian(dim).flow()

    def sample_batched(self, sample_shape, x, show_progress_bars=True):
        draws = self.flow.given(x).rsample_and_log_prob(*sample_shape)[0]
        draws[..., -1] = (draws[..., -1] + x[:, -1] / 1.5) / 2
        return draws


def make_diagnosis(dim):
    theta, x = ConjugateGaussian(dim).simulate(200, seed=1)
    options = {"num_posterior_samples": 200, "seed": 0, "show_progress_bars": False}
    return diagnose(Narrow(dim), theta, x, **options)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8])
def test_all_panels_show_the_diagnosis(tmp_path, dim):
    diagnosis = make_diagnosis(dim)
    figure = rendered(diagnosis.plot(), tmp_path)
    axes = figure.axes
    recovery, ranks = axes[:dim], axes[dim : 2 * dim]
    coverage, contraction, tarp = axes[2 * dim :]
    for i in range(dim):
        points, *_ = recovery[i].lines
        assert points.get_ydata() == pytest.approx(diagnosis.mean[:, i])
        assert recovery[i].get_title() == f"theta_{i}: R² {diagnosis.recovery[i]:.2f}"
        expected = "too narrow" if i == dim - 1 else "consistent"
        assert ranks[i].get_title() == f"theta_{i}: {expected}"
        assert (ranks[i].title.get_color() == RED) == (i == dim - 1)
        curve, levels = lines(coverage)[f"theta_{i}"], coverage.lines[i].get_xdata()
        signed = diagnosis.calibration.coverage(levels).coverage[:, i] - levels
        assert curve == pytest.approx(signed)
        cloud = contraction.lines[i]
        assert cloud.get_xdata() == pytest.approx(diagnosis.contraction[:, i])
        assert cloud.get_ydata() == pytest.approx(diagnosis.z_scores[:, i])
        of_one = (points, ranks[i].lines[0], coverage.lines[i], cloud)
        assert {to_hex(line.get_color()) for line in of_one} == {PALETTE[i].lower()}
    assert tarp.lines[0].get_ydata() == pytest.approx(diagnosis.calibration.ecp.numpy())
    names = [f"theta_{i}" for i in range(dim)]
    assert [label for label in legend_of(figure) if "pot_c" not in label] == [
        "95 %",
        *names,
    ]
    assert figure.get_suptitle() == "200 simulations"


def test_of_ten_parameters_those_with_the_largest_errors_are_drawn(tmp_path):
    diagnosis = make_diagnosis(10)
    figure = rendered(plots.plot_diagnosis(diagnosis), tmp_path)
    assert "the 8 of 10 parameters with the largest errors" in figure.get_suptitle()
    shown = [int(axis.get_title().split(":")[0][6:]) for axis in figure.axes[:8]]
    errors = np.maximum(
        abs(diagnosis.calibration.bias), abs(diagnosis.calibration.coverage_error)
    )
    left_out = sorted(set(range(10)) - set(shown))
    assert errors[left_out].max() <= errors[shown].min()
    assert shown == sorted(shown)
    assert 9 in shown
