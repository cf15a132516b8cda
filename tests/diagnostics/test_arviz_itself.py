"""What arviz itself, of the version that is installed, makes of the export."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch.distributions import MultivariateNormal

from sbi_jeffreys import calibrate, to_inference_data
from sbi_jeffreys._arviz import load_arviz, release
from tests.conftest import fit_in_few_steps
from tests.small_trainings import make_trainer, quick, simulate

# With matplotlib's newest, arviz 0.23 warns, and it warns of its own future.
pytestmark = pytest.mark.filterwarnings("ignore")
az = load_arviz()
IS_1 = release("arviz") >= (1, 0)
# arviz 1 knows no sensitivity to a uniform prior.
PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))
X_O = torch.tensor([0.4, -0.2])
OPTIONS = {
    "num_samples": 400,
    "parameter_names": ["rate", "scale"],
    "dims": {"x": ["statistic"]},
    "coords": {"statistic": ["first", "second"]},
    "prior": PRIOR,
    "simulator": simulate,
    "num_predictive": 100,
    "seed": 0,
    "show_progress_bars": False,
}


@pytest.fixture(scope="module")
def posteriors():
    with pytest.MonkeyPatch.context() as monkeypatch:
        fit_in_few_steps(monkeypatch)
        trainer = make_trainer(PRIOR)
        quick(trainer, max_num_epochs=3)
    energy = trainer.build_posterior(sample_with="energy")
    return {"flow": trainer.build_posterior(), "energy": energy}


@pytest.fixture(scope="module")
def data(posteriors):
    return to_inference_data(posteriors, X_O, **OPTIONS)


@pytest.fixture(scope="module")
def several(posteriors):
    """Given three observations of the same parameters."""
    x = X_O + torch.tensor([[0.0, 0.1], [0.1, 0.0], [-0.1, 0.1]])
    return to_inference_data(posteriors["energy"], x, **OPTIONS)


@pytest.fixture
def saved(tmp_path):
    """Save what a function of arviz returns, and count the axes that show anything."""
    plt.close("all")

    def save(plot):
        if hasattr(plot, "savefig"):  # a collection of arviz 1
            plot.savefig(tmp_path / "figure.png")
        figures = [plt.figure(num) for num in plt.get_fignums()]
        assert figures
        for figure in figures:
            assert isinstance(figure, Figure)
            figure.savefig(tmp_path / "figure.png")
        axes = [axis for figure in figures for axis in figure.axes]
        return sum(bool(axis.lines or axis.collections) for axis in axes)

    yield save
    plt.close("all")


OF_1 = {
    "plot_forest": {},
    "plot_dist": {},
    "plot_ppc_dist": {},
    "plot_ppc_pit": {},
    "plot_rank": {},
    "plot_psense_dist": {},
    "plot_prior_posterior": {},
    "plot_trace_dist": {},
}
OF_0 = {
    "plot_forest": {},
    "plot_posterior": {},
    "plot_density": {},
    "plot_ppc": {},
    "plot_rank": {},
    "plot_trace": {},
}


@pytest.mark.parametrize("name", OF_1 if IS_1 else OF_0)
def test_arviz_draws_it(data, saved, name):
    num = 1 if "ppc" in name else 2
    assert saved(getattr(az, name)(data["flow"])) >= (1 if "forest" in name else num)


@pytest.mark.parametrize("name", ["plot_forest", "plot_dist" if IS_1 else "plot_density"])
def test_arviz_draws_several_posteriors(data, saved, name):
    given = data if IS_1 else list(data.values())
    assert saved(getattr(az, name)(given)) >= 1


def test_arviz_draws_predictions_for_several_observations(several, saved):
    assert saved((az.plot_ppc_dist if IS_1 else az.plot_ppc)(several)) == 1


@pytest.mark.parametrize("coverage", [False, True])
def test_ranks_of_a_calibration_can_be_drawn(posteriors, saved, coverage):
    theta = PRIOR.sample((100,))
    calibration = calibrate(
        posteriors["flow"],
        theta,
        simulate(theta),
        num_posterior_samples=100,
        seed=0,
        show_progress_bars=False,
    )
    data = calibration.to_inference_data()
    ranks = data["prior_sbc"]
    for name, pit in calibration.pit.items():
        np.testing.assert_array_equal(ranks[name].values, pit[None])
    assert ranks.attrs["num_posterior_samples"] == 100
    assert ranks.attrs["verdict"] == calibration.verdict
    if IS_1:
        plot = az.plot_ecdf_pit(
            data, group="prior_sbc", method="pot_c", coverage=coverage
        )
        assert saved(plot) == 2


def test_the_summary_is_that_of_the_draws(data):
    table = az.summary(data["flow"], round_to="none")
    assert list(table.index) == ["rate", "scale"]
    draws = data["flow"]["posterior"]["scale"].values
    assert float(table["mean"]["scale"]) == pytest.approx(float(draws.mean()), rel=1e-4)


def test_the_observations_can_be_left_out_one_at_a_time(several):
    """With equal weights, the estimate is the log of the mean likelihood, at most."""
    result = az.loo(several)
    log_ratio = several["log_likelihood"]["x"].values.reshape(-1, 3)
    assert result.n_data_points == 3
    mean = np.log(np.exp(log_ratio).mean(0)).sum()
    elpd = result.elpd if IS_1 else result.elpd_loo
    assert mean - 1 < float(elpd) <= mean + 1e-6


@pytest.mark.parametrize("kind", ["one", "several"])
def test_sensitivity_to_prior_and_likelihood(data, several, kind):
    given = data["flow"] if kind == "one" else several
    if IS_1:
        table = az.psense_summary(given, round_to=6)
        prior, likelihood = table["prior"], table["likelihood"]
    else:
        prior, likelihood = (
            az.psens(given, component=name).to_array().to_series()
            for name in ("prior", "likelihood")
        )
    assert list(prior.index) == ["rate", "scale"]
    for values in (prior, likelihood):
        assert np.isfinite(values).all()
        assert (values > 1e-3).all()
