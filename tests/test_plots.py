"""Figures show what they are given; they need no display, and leave nothing behind."""

from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sbi_jeffreys import plots
from sbi_jeffreys._arviz import inference_data, non_uniform, release
from sbi_jeffreys.plots.agreement import _pareto_tail
from sbi_jeffreys.plots.style import RED, color_of
from sbi_jeffreys.training.schedule import Cycles
from tests.diagnostics.test_calibration import of_ranks
from tests.small_trainings import make_trainer


@pytest.fixture(autouse=True)
def leaves_nothing_behind():
    """Neither figures of pyplot's, nor settings, nor another backend."""
    before = plt.get_fignums(), dict(matplotlib.rcParams), matplotlib.get_backend()
    yield
    after = plt.get_fignums(), dict(matplotlib.rcParams), matplotlib.get_backend()
    assert after == before


def rendered(figure, path):
    """Draw all of it, as a notebook would."""
    assert isinstance(figure, Figure)
    figure.savefig(path / "figure.png", dpi=100)
    width, height = figure.get_size_inches()
    assert max(width, height) <= 12
    return figure


def lines(axis):
    """Labels and values of lines that are in the legend, or would be."""
    return {
        line.get_label(): np.asarray(line.get_ydata())
        for line in axis.lines
        if not line.get_label().startswith("_") and len(line.get_ydata())
    }


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def make_summary(num=12):
    generator = np.random.default_rng(0)
    summary = {
        name: generator.random(num).tolist()
        for name in (
            "training_loss",
            "validation_loss",
            "validation_energy_loss",
            "validation_kl_flow_energy",
            "validation_log_z",
            "validation_ess",
        )
    }
    summary["multipliers"] = generator.random((num, 3)).tolist()
    summary["divergences"] = generator.random((num, 3)).tolist()
    summary["learning_rate"] = [4e-3 * Cycles(3).factor(epoch) for epoch in range(num)]
    return summary


def test_training_shows_each_quantity_and_where_cycles_start(tmp_path):
    summary = make_summary()
    figure = rendered(plots.plot_training(summary), tmp_path)
    losses, kl, multipliers, ess = figure.axes
    assert lines(losses) == {
        "flow, held out": pytest.approx(summary["validation_loss"]),
        "flow, training": pytest.approx(summary["training_loss"]),
        "energy, held out": pytest.approx(summary["validation_energy_loss"]),
        "energy, training": pytest.approx([d[2] for d in summary["divergences"]]),
    }
    assert lines(kl)["log Z"] == pytest.approx(summary["validation_log_z"])
    assert [*lines(multipliers).values()] == [
        pytest.approx(values) for values in np.transpose(summary["multipliers"])
    ]
    assert ess.lines[0].get_ydata() == pytest.approx(summary["validation_ess"])
    for axis in figure.axes:
        starts = [x[0] for x in (li.get_xdata() for li in axis.lines) if len(x) == 2]
        assert starts == [4, 10]
        assert axis.get_ylabel()
    assert "nats" in losses.get_ylabel()


def test_losses_of_the_first_epochs_do_not_squeeze_the_others(tmp_path):
    summary = make_summary(40)
    summary["validation_loss"][0] = 1000.0
    figure = rendered(plots.plot_training(summary), tmp_path)
    low, high = figure.axes[0].get_ylim()
    assert -1 < low < 0.1
    assert 0.8 < high < 2


def test_training_of_one_epoch_is_drawn(tmp_path):
    summary = {name: values[:1] for name, values in make_summary().items()}
    figure = rendered(plots.plot_training(summary), tmp_path)
    (held_out,) = lines(figure.axes[0])["flow, held out"]
    assert held_out == summary["validation_loss"][0]
    assert all(
        np.isfinite(axis.get_xlim() + axis.get_ylim()).all() for axis in figure.axes
    )


def test_a_notebook_shows_the_figure_itself():
    figure = plots.plot_training(make_summary())
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_trainer_is_drawn_like_its_summary(trained):
    some, same = map(plots.plot_training, (trained, trained.summary))
    for axis, other in zip(some.axes, same.axes, strict=True):
        assert lines(axis).keys() == lines(other).keys()
        for label, values in lines(axis).items():
            assert values == pytest.approx(lines(other)[label])
    with pytest.raises(TypeError, match="a JNPE or its `summary`, got list"):
        plots.plot_training([1.0])


def test_a_summary_of_something_else_is_refused():
    summary = make_summary()
    del summary["divergences"]
    summary["multipliers"] = []
    with pytest.raises(ValueError, match="has no multipliers, divergences"):
        plots.plot_training(summary)


def test_a_trainer_that_was_not_trained_is_refused():
    with pytest.raises(ValueError, match="after training, but it has no training_loss"):
        plots.plot_training(make_trainer())


def make_report(num=1, spread=0.5, pareto_k=0.2):
    log_weights = spread * torch.randn(400, num, generator=torch.manual_seed(0))
    verdict = "flow and energy agree (KL 0.10 nats, ESS 80%)"
    report = SimpleNamespace(
        kl_flow_energy=torch.linspace(0.1, 0.9, num),
        kl_flow_energy_se=torch.full((num,), 0.05),
        ess=torch.linspace(0.8, 0.2, num),
        pareto_k=torch.full((num,), pareto_k),
        log_z=log_weights.exp().mean(0).log(),
        log_weights=log_weights,
        verdicts=[verdict] * num,
        flow_is_trustworthy=torch.full((num,), pareto_k <= 0.7),
    )
    if num > 1:
        report.pareto_k[-1] = 0.9
        report.flow_is_trustworthy[-1] = False
        report.verdicts[-1] = "x is unlike the simulations (p = 0.001): trust neither"
    return report


@pytest.mark.parametrize("pareto_k", [0.2, 0.0, -0.3, 0.9, -np.inf])
def test_agreement_at_one_observation(tmp_path, pareto_k):
    report = make_report(pareto_k=pareto_k)
    figure = rendered(plots.plot_agreement(report), tmp_path)
    histogram, tail = figure.axes
    assert figure.get_suptitle().replace("\n", " ") == report.verdicts[0]
    density, edges, _ = histogram.patches[0].get_data()
    assert density @ np.diff(edges) == pytest.approx(1)
    assert edges[-1] == pytest.approx(float((report.log_weights - report.log_z).max()))
    weights = np.sort((report.log_weights - report.log_z)[:, 0].exp().numpy())
    assert tail.lines[0].get_xdata() == pytest.approx(weights, rel=1e-4)
    assert tail.lines[0].get_ydata()[[0, -1]] == pytest.approx([1 - 0.5 / 400, 0.5 / 400])
    assert len(tail.lines) == (3 if np.isfinite(pareto_k) else 1)
    trusted = to_hex(tail.lines[0].get_color()) == to_hex(color_of("flow"))
    assert trusted == (pareto_k <= 0.7)


def test_the_tail_drawn_is_that_of_a_generalised_pareto_distribution():
    """1,000 exact quantiles lie on the curve with their own k, and on no other."""
    above = 1 - (np.arange(1000) + 0.5) / 1000
    for k in (-0.4, 0.0, 0.5, 0.9):
        excess = -np.log(above) if k == 0 else (above**-k - 1) / k
        curve = _pareto_tail(3 + 2 * excess, k)
        assert curve == pytest.approx(above, abs=3e-3)
        assert np.abs(_pareto_tail(excess, k + 0.4) - above).max() > 0.02


def test_draws_without_weight_are_counted_but_not_drawn(tmp_path):
    report = make_report()
    report.log_weights[:100] = -torch.inf
    tail = rendered(plots.plot_agreement(report), tmp_path).axes[1]
    assert tail.lines[0].get_ydata()[0] == pytest.approx(299.5 / 400)


def test_one_very_low_weight_does_not_squeeze_the_others(tmp_path):
    report = make_report()
    report.log_weights[0] = -1000.0
    histogram, tail = rendered(plots.plot_agreement(report), tmp_path).axes
    assert histogram.get_xlim()[0] > -10
    assert tail.get_xlim()[0] > 1e-4
    density, edges, _ = histogram.patches[0].get_data()
    assert density @ np.diff(edges) == pytest.approx(399 / 400)


def test_no_weight_at_all_is_refused():
    report = make_report()
    report.log_weights[:] = -torch.inf
    with pytest.raises(ValueError, match="with a draw of positive weight"):
        plots.plot_agreement(report)


def test_equal_weights_are_drawn(tmp_path):
    report = make_report(spread=0.0, pareto_k=-np.inf)
    figure = rendered(plots.plot_agreement(report), tmp_path)
    assert list(lines(figure.axes[1])) == ["draws"]  # there is no tail


def test_agreement_at_several_observations(tmp_path):
    report = make_report(num=5)
    figure = rendered(plots.plot_agreement(report), tmp_path)
    kl, ess, pareto_k = figure.axes
    assert figure.get_suptitle() == (
        "4 × flow and energy agree; 1 × x is unlike the simulations"
    )
    assert list(lines(ess)) == ["flow is reliable", "flow is not reliable"]
    assert np.concatenate([*lines(ess).values()]) == pytest.approx(report.ess.numpy())
    assert ess.lines[1].get_color() == RED
    levels = [lines(axis) for axis in (kl, pareto_k)]
    assert all(level["0.5"] == pytest.approx(0.5) for level in levels[:1])
    assert levels[1]["0.7"] == pytest.approx(0.7)


def make_calibrations():
    """Of uniform ranks, and of ranks at the ends."""
    torch.manual_seed(0)
    ranks = torch.randint(0, 1001, (300, 3)).float()
    ends = 500 * (1 + (ranks / 500 - 1).sign() * (ranks / 500 - 1).abs() ** 0.3)
    return {"energy": of_ranks(ranks), "narrow": of_ranks(ends.round())}


def test_ranks_of_calibrated_posteriors_stay_in_the_band(tmp_path):
    calibrations = make_calibrations()
    figure = rendered(plots.plot_ranks(calibrations), tmp_path)
    assert [axis.get_title() for axis in figure.axes] == ["theta_0", "theta_1"]
    tested = ["pot_c: p < 0.05"] if release("arviz-stats") >= (1, 1) else []
    assert legend_of(figure) == ["95 %", "energy", "narrow", *tested]
    for i, axis in enumerate(figure.axes):
        (band,) = axis.collections
        edges = band.get_paths()[0].vertices
        points = axis.lines[0].get_xdata()
        assert edges[:, 0].min() == points[0]
        outside = {}
        dots = {}
        for name, calibration in calibrations.items():
            curve, pit = lines(axis)[name], calibration.pit[f"theta_{i}"]
            dots[name] = int(non_uniform(pit, 0.05).sum())
            share = (pit[:, None] <= points).mean(0)
            assert curve == pytest.approx(share - points, abs=1e-12)
            low, high = band_at(edges, points)
            outside[name] = bool(((curve < low) | (curve > high)).any())
        assert outside == {"energy": False, "narrow": True}
        red = [len(li.get_xdata()) for li in axis.lines if li.get_color() == RED]
        assert red[:2] == list(dots.values())
        assert (red[1] > 0) == bool(tested)


def band_at(edges, points):
    columns = [edges[np.isclose(edges[:, 0], point), 1] for point in points]
    return np.array([c.min() for c in columns]), np.array([c.max() for c in columns])


def test_the_band_holds_as_many_uniform_samples_as_it_says():
    """95 % of 500 samples, within 4.5 standard errors, and that of the band itself."""
    from sbi_jeffreys.plots.calibration import _band

    points = np.arange(1, 100) / 100
    low, high = _band(200, points)
    samples = np.random.default_rng(1).random((500, 200, 1))
    shares = (samples <= points).mean(1)
    held = ((shares >= low) & (shares <= high)).all(-1).mean()
    assert held == pytest.approx(
        0.95, abs=4.5 * (0.95 * 0.05 * (1 / 500 + 1 / 2000)) ** 0.5
    )


def test_coverage_curves_are_those_of_the_calibration(tmp_path):
    calibrations = make_calibrations()
    figure = rendered(plots.plot_coverage(calibrations), tmp_path)
    levels = figure.axes[0].lines[0].get_xdata()
    for name, calibration in calibrations.items():
        coverage = calibration.coverage(levels).coverage
        for i, axis in enumerate(figure.axes):
            assert lines(axis)[name] == pytest.approx(coverage[:, i])
    assert legend_of(figure) == ["95 %", "energy", "narrow"]


def test_tarp_curves_are_those_of_the_calibration(tmp_path):
    calibrations = make_calibrations()
    (axis,) = rendered(plots.plot_tarp(calibrations), tmp_path).axes
    for name, calibration in calibrations.items():
        assert lines(axis)[name] == pytest.approx(calibration.ecp.numpy())
    assert "α" in axis.get_xlabel()


@pytest.mark.parametrize("plot", [plots.plot_ranks, plots.plot_coverage, plots.plot_tarp])
def test_one_calibration_needs_no_name(plot, tmp_path):
    figure = rendered(plot(make_calibrations()["energy"]), tmp_path)
    assert list(lines(figure.axes[0])) == ["posterior"]


@pytest.mark.parametrize("plot", [plots.plot_ranks, plots.plot_coverage, plots.plot_tarp])
def test_calibrations_of_other_simulations_are_refused(plot):
    calibrations = make_calibrations()
    calibrations["few"] = of_ranks(torch.zeros(10, 3))
    with pytest.raises(ValueError, match=r"numbers of simulations, got .*10.*300"):
        plot(calibrations)
    with pytest.raises(ValueError, match=r"got \[\]"):
        plot({})


def test_a_posterior_has_the_same_colour_in_all_figures(tmp_path):
    assert color_of("flow") != color_of("energy") != color_of("a new one")
    assert color_of("a new one") == color_of("a new one")
    names = [f"number {i}" for i in range(10)]
    assert len({color_of(name) for name in names[:2]}) == 2
    data = {name: make_data(i) for i, name in enumerate(("flow", "energy"))}
    axis = plots.plot_densities(data).axes[0]
    drawn = {to_hex(line.get_color()) for line in axis.lines}
    assert drawn == {to_hex(color_of(name)) for name in data}


def make_data(seed, shape=(3,), entries=20):
    generator = np.random.default_rng(seed)
    return inference_data(
        {
            "posterior": {
                "theta": generator.normal(seed, 1, (1, 300, *shape)),
                "sigma": generator.random((1, 300)),
            },
            "posterior_predictive": {"x": generator.normal(size=(1, 300, entries))},
            "observed_data": {"x": np.linspace(-1, 1, entries)},
        }
    )


def test_densities_of_all_posteriors_share_a_panel(tmp_path, container):
    data = {"flow": make_data(0), "energy": make_data(5)}
    reference = {"theta": [0.5, 1.0, np.nan]}
    figure = rendered(plots.plot_densities(data, reference=reference), tmp_path)
    titles = ["theta[0]", "theta[1]", "theta[2]", "sigma"]
    assert [axis.get_title() for axis in figure.axes] == titles
    assert legend_of(figure) == ["flow", "energy"]
    for axis, mark in zip(figure.axes, [[0.5], [1.0], [], []], strict=True):
        dashed = [line.get_xdata()[0] for line in axis.lines if line.is_dashed()]
        assert dashed == mark
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 10]
    tops = [c.get_xdata()[np.argmax(c.get_ydata())] for c in curves]
    assert tops == pytest.approx([0, 5], abs=1)
    area = np.trapezoid(curves[0].get_ydata(), curves[0].get_xdata())
    assert area == pytest.approx(1, abs=0.02)
    one = rendered(plots.plot_densities({"flow": data["flow"]}, ["sigma"]), tmp_path)
    assert [axis.get_title() for axis in one.axes] == ["sigma"]


def test_a_parameter_that_does_not_vary_is_a_line(tmp_path):
    data = inference_data({"posterior": {"a": np.full((2, 50), 3.0)}})
    (axis,) = rendered(plots.plot_densities(data), tmp_path).axes
    assert set(axis.lines[0].get_xdata()) == {3.0}
    rendered(plots.plot_forest(data), tmp_path)


def test_a_forest_has_a_row_for_each_parameter_and_posterior(tmp_path, container):
    data = {"flow": make_data(0), "energy": make_data(5)}
    figure = rendered(plots.plot_forest(data), tmp_path)
    assert legend_of(figure) == ["flow", "energy"]
    (axis,) = figure.axes
    labels = ["theta[0]", "theta[1]", "theta[2]", "sigma"]
    assert [label.get_text() for label in axis.get_yticklabels()] == labels
    for line, each in zip(axis.lines, data.values(), strict=True):
        medians = [*np.median(each["posterior"]["theta"].values, (0, 1))]
        medians.append(np.median(each["posterior"]["sigma"].values))
        assert line.get_xdata() == pytest.approx(medians)
        assert line.get_ydata() == pytest.approx(np.arange(4), abs=0.35)
    wide, narrow = axis.collections[:2]
    sigma = np.sort(data["flow"]["posterior"]["sigma"].values.ravel())
    (low, _), (high, _) = narrow.get_segments()[3]
    assert (low, high) == pytest.approx(np.quantile(sigma, [0.25, 0.75]))
    (low, _), (high, _) = wide.get_segments()[3]
    held = ((sigma >= low) & (sigma <= high)).mean()
    assert held == pytest.approx(0.94, abs=0.01)
    alone = rendered(plots.plot_forest(data["flow"]), tmp_path)
    assert legend_of(alone) == ["posterior"]


def test_a_forest_of_different_scales_has_an_axis_for_each(tmp_path):
    draws = np.random.default_rng(0).normal(size=(2, 100, 2)) * [1.0, 1000.0]
    data = inference_data({"posterior": {"theta": draws}})
    figure = rendered(plots.plot_forest(data), tmp_path)
    ends = [axis.get_xlim()[1] for axis in figure.axes]
    assert ends[0] < 5
    assert ends[1] > 1000
    labels = [axis.get_yticklabels()[0].get_text() for axis in figure.axes]
    assert labels == ["theta[0]", "theta[1]"]


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_no_legend_is_wider_than_its_figure(tmp_path, dim):
    torch.manual_seed(0)
    ranks = torch.randint(0, 1001, (100, dim + 1)).float()
    names = ("flow", "energy", "a posterior with a long name")
    figure = plots.plot_coverage({name: of_ranks(ranks) for name in names})
    rendered(figure, tmp_path)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_predictions_have_a_column_for_each_posterior(tmp_path, container):
    data = {"flow": make_data(0), "energy": make_data(5)}
    figure = rendered(plots.plot_predictive(data), tmp_path)
    assert [axis.get_title() for axis in figure.axes] == ["flow", "energy"]
    assert legend_of(figure) == ["predicted", "observed", "all predictions"]
    limits = [axis.get_xlim() for axis in figure.axes]
    assert limits[0] == limits[1]
    thin = [line for line in figure.axes[0].lines if line.get_alpha()]
    assert len(thin) == 100
    (observed,) = (li for li in figure.axes[0].lines if li.get_label() == "observed")
    assert np.ptp(observed.get_xdata()) == pytest.approx(2.6, abs=0.05)  # with tails
    assert observed.get_ydata()[[0, -1]].max() < 0.3 * observed.get_ydata().max()


def test_an_x_of_few_entries_is_marked(tmp_path):
    (axis,) = rendered(plots.plot_predictive(make_data(0, entries=2)), tmp_path).axes
    assert [line.get_xdata()[0] for line in axis.lines[:2]] == [-1, 1]
    assert legend_of(axis.figure) == ["observed", "all predictions"]


def test_predictions_that_are_not_finite_are_left_out(tmp_path):
    data = make_data(0)
    x = data.posterior_predictive["x"]
    invalid = np.random.default_rng(0).random(x.shape[:2]) < 0.3
    data.posterior_predictive["x"] = x.where(~invalid.reshape(*invalid.shape, 1))
    figure = rendered(plots.plot_predictive(data), tmp_path)
    assert np.isfinite(figure.axes[0].get_xlim()).all()
    data.posterior_predictive["x"] = x.where(False)
    with pytest.raises(ValueError, match=r"Expected finite draws .* got none"):
        plots.plot_predictive(data)


@pytest.mark.parametrize(
    "plot", [plots.plot_densities, plots.plot_forest, plots.plot_predictive]
)
def test_what_cannot_be_drawn_is_refused(plot):
    data = make_data(0)
    with pytest.raises(TypeError, match="to map names to these, got Tensor"):
        plot(torch.zeros(3))
    with pytest.raises(TypeError, match=r"to map names to these, got dict \(empty\)"):
        plot({})
    with pytest.raises(TypeError, match=r"`data\['flow'\]` .* got tensor"):
        plot({"flow": torch.zeros(3)})
    with pytest.raises(TypeError, match=r"(?s)the group 'posterior\w*', got .*prior"):
        plot(inference_data({"prior": {"theta": np.zeros((1, 3))}}))
    with pytest.raises(ValueError, match=r"'flow' lacks \['z'\]"):
        plot({"flow": data}, ["z"])


def test_references_that_do_not_fit_are_refused():
    data = {"flow": make_data(0)}
    with pytest.raises(ValueError, match=r"`reference\['theta'\]` of shape \(3,\), got"):
        plots.plot_densities(data, reference={"theta": 1.0})
    with pytest.raises(ValueError, match=r"got also \{'z'\}"):
        plots.plot_densities(data, reference={"z": 1.0})
