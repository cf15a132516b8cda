"""Tables of posteriors, with exact values where draws are known."""

import sys
from math import log, pi
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from sbi.inference import NPE
from sbi.inference.posteriors import MCMCPosterior, RejectionPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch.distributions import MultivariateNormal

from sbi_jeffreys import JNPE
from sbi_jeffreys.diagnostics.comparison import COLUMNS, Comparison, compare
from sbi_jeffreys.diagnostics.inference_data import to_inference_data
from sbi_jeffreys.diagnostics.scores import sliced_wasserstein
from tests.conftest import fit_in_few_steps

pytestmark = pytest.mark.filterwarnings("ignore:Pareto k is above")

PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))
X_O = torch.tensor([0.5, -0.2])
DISTANCES = ["c2st_random_forest", "sliced_wasserstein", "mmd_squared"]
HELD_OUT = ["coverage_50", "coverage_90", "nll", "nll_se"]


def simulator(theta):
    return theta + torch.randn_like(theta)


def exact_potential(theta, x_o):
    return PRIOR.log_prob(theta) - 0.5 * (theta - x_o).square().sum(-1)


class Exact(NeuralPosterior):
    """N(x/2 + shift, scale²/2) given the simulator's x: exact by default."""

    def __init__(self, scale=1.0, shift=0.0):
        super().__init__(exact_potential)
        self.sd, self.shift = scale * 0.5**0.5, shift

    def sample_batched(self, sample_shape, x, **kwargs):
        return x / 2 + self.shift + self.sd * torch.randn(*sample_shape, *x.shape)

    def sample(self, sample_shape, x=None, **kwargs):
        return self.sample_batched(sample_shape, x.reshape(1, 2))[..., 0, :]

    def log_prob_batched(self, theta, x):
        z = (theta - x / 2 - self.shift) / self.sd
        return (-0.5 * z**2 - log(self.sd) - 0.5 * log(2 * pi)).sum(-1)

    def log_prob(self, theta, x=None):
        return self.log_prob_batched(theta, x)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    theta = PRIOR.sample((200,))
    result = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        fit_in_few_steps(monkeypatch)
        for name, method in {"NPE": NPE, "JNPE": JNPE}.items():
            trainer = method(PRIOR, show_progress_bars=False)
            trainer.append_simulations(theta, simulator(theta)).train(max_num_epochs=2)
            result[name] = trainer.build_posterior()
    result["energy"] = trainer.build_posterior(sample_with="energy")
    return result


@pytest.fixture(scope="module")
def fresh():
    """A thousand pairs."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theta = PRIOR.sample((1000,))
        return {"theta": theta, "x": simulator(theta)}


def run(posteriors, x_o=X_O, **options):
    options = {"num_samples": 100, "seed": 0, "show_progress_bars": False, **options}
    return compare(posteriors, x_o, **options)


def cell(comparison, column, posterior, parameter=None):
    table = comparison.posteriors if parameter is None else comparison.parameters
    rows = table[table["posterior"] == posterior]
    if parameter is not None:
        rows = rows[rows["parameter"] == parameter]
    return rows[column].item()


def normal_grid(num=1000):
    """Quantiles of a standard normal distribution, in random order."""
    grid = np.array([NormalDist().inv_cdf((i + 0.5) / num) for i in range(num)])
    return np.random.default_rng(0).permutation(grid)


def test_the_summary_of_known_samples():
    """Of 1,000 quantiles, the narrowest interval with probability 0.9."""
    grid = normal_grid()
    samples = np.stack([grid, 10 + 3 * grid], -1).reshape(4, 250, 2)
    result = run({"some": samples}, None, hdi_prob=0.9, parameter_names=["a", "b"])
    table = result.parameters
    assert list(table["parameter"]) == ["a", "b"]
    np.testing.assert_allclose(table["mean"], [0, 10], atol=1e-10)
    np.testing.assert_allclose(table["sd"], samples.reshape(-1, 2).std(0, ddof=1))
    np.testing.assert_allclose(table["hdi_low"], [-1.645, 10 - 4.935], atol=0.15)
    np.testing.assert_allclose(table["hdi_high"], [1.645, 10 + 4.935], atol=0.15)
    assert (table["ess_bulk"] > 700).all()
    assert (abs(table["r_hat"] - 1) < 0.02).all()
    assert list(result.posteriors.columns) == ["posterior", "num_draws"]
    assert cell(result, "num_draws", "some") == 1000
    assert result.reference is None
    assert result.hdi_prob == 0.9


def test_r_hat_is_of_chains_only(trained):
    samples = np.random.default_rng(0).normal(size=(4, 50, 2))
    mcmc = MCMCPosterior(
        exact_potential, PRIOR, num_chains=3, warmup_steps=2, init_strategy="proposal"
    )
    result = run({"chains": samples, "flat": samples.reshape(-1, 2), "mcmc": mcmc})
    assert np.isfinite(cell(result, "r_hat", "chains", "theta[0]"))
    assert np.isfinite(cell(result, "r_hat", "mcmc", "theta[1]"))
    assert np.isnan(cell(result, "r_hat", "flat", "theta[0]"))
    assert np.isnan(cell(run(trained["JNPE"]), "r_hat", "posterior", "theta[0]"))


def test_distances_of_equal_and_of_separated_samples():
    """Accuracy of a classifier that can't know: 0.5, of 1,000 guesses with a standard
    error of 0.016, somewhat more as training sets are shared; 0.1 are six of them.
    The squared MMD of 500 samples strays by about 0.002 when they are equal."""
    rng = np.random.default_rng(0)
    named = {
        "truth": rng.normal(size=(500, 2)),
        "same": rng.normal(size=(500, 2)),
        "far": rng.normal(size=(500, 2)) + 20,
        "wide": 2 * rng.normal(size=(500, 2)),
    }
    result = run(named, None, reference="truth", classifiers=("rf", "mlp"))
    for column in ("c2st_random_forest", "c2st_mlp"):
        assert abs(cell(result, column, "same") - 0.5) < 0.1
        assert cell(result, column, "far") > 0.95
        assert 0.6 < cell(result, column, "wide") < 0.9
        assert np.isnan(cell(result, column, "truth"))
    assert abs(cell(result, "mmd_squared", "same")) < 0.02
    assert cell(result, "mmd_squared", "far") > 0.5
    assert cell(result, "sliced_wasserstein", "same") < 0.25
    order = ["same", "wide", "far"]
    for column in ("sliced_wasserstein", "mmd_squared"):
        got = [cell(result, column, name) for name in order]
        assert got == sorted(got)
    assert list(result.posteriors.columns) == [
        c for c in COLUMNS if c in result.posteriors
    ]


def test_distances_are_in_the_references_units():
    """One parameter: a shift moves every sample equally far, in any direction."""
    grid = normal_grid()[:, None] * 5
    sd = grid.std(ddof=1)
    named = {"truth": grid, "shifted": grid + 3, "narrow": grid / 2}
    result = run(named, None, reference="truth", classifiers=())
    assert cell(result, "sliced_wasserstein", "shifted") == pytest.approx(3 / sd)
    assert cell(result, "max_mean_shift", "shifted") == pytest.approx(3 / sd)
    assert cell(result, "mean_sd_ratio", "shifted") == pytest.approx(1)
    assert cell(result, "mean_sd_ratio", "narrow") == pytest.approx(0.5)
    assert cell(result, "mean_shift", "shifted", "theta[0]") == pytest.approx(3 / sd)
    assert cell(result, "sd_ratio", "narrow", "theta[0]") == pytest.approx(0.5)
    assert cell(result, "mean_shift", "truth", "theta[0]") == 0
    assert cell(result, "sd_ratio", "truth", "theta[0]") == 1
    scaled = {name: 100 * each - 7 for name, each in named.items()}
    again = run(scaled, None, reference="truth", classifiers=()).posteriors
    assert "c2st_random_forest" not in again
    pd.testing.assert_frame_equal(again, result.posteriors, rtol=1e-6)


def test_projections_are_onto_directions_of_length_one():
    """The mean of |v·u| over the sphere in three dimensions is |v|/2; of 64 directions,
    with a standard error of 0.29/√64 = 0.036 |v|."""
    samples = np.random.default_rng(0).normal(size=(50, 3))
    moved = samples + np.array([3.0, 0.0, 4.0])
    got = sliced_wasserstein(samples, moved, np.random.default_rng(1))
    assert abs(got - 2.5) < 5 * 0.036 * 5


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_coverage_and_nll_of_a_known_posterior(fresh, scale):
    """Binomial standard errors of 2,000 parameters: 0.011 and 0.007; five of them. The
    NLL has its own standard error; five of those."""
    result = run({"exact": Exact(scale)}, **fresh)
    normal = NormalDist()
    for level, se in ((0.5, 0.011), (0.9, 0.007)):
        expected = 2 * normal.cdf(scale * normal.inv_cdf(0.5 + level / 2)) - 1
        got = cell(result, f"coverage_{round(100 * level)}", "exact")
        assert abs(got - expected) < 5 * se + 1 / 200  # ranks are whole
        assert (got < level - 0.02) == (scale < 1)
    expected = log(2 * pi * scale**2 / 2) + scale**-2
    se = cell(result, "nll_se", "exact")
    assert abs(cell(result, "nll", "exact") - expected) < 5 * se
    assert se == pytest.approx(scale**-2 / 1000**0.5, rel=0.3)


def test_fresh_simulations_may_be_arrays_in_double_precision(trained, fresh):
    pair = {name: values[:20] for name, values in fresh.items()}
    arrays = {name: values.double().numpy() for name, values in pair.items()}
    tables = [
        run(trained, num_samples=20, num_posterior_samples=20, **some).posteriors
        for some in (pair, arrays)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_a_shifted_posterior_covers_less(fresh):
    result = run({"exact": Exact(), "shifted": Exact(shift=1.0)}, **fresh)
    for column in ("coverage_50", "coverage_90"):
        assert cell(result, column, "shifted") < cell(result, column, "exact") - 0.2
    assert cell(result, "nll", "shifted") > cell(result, "nll", "exact") + 1


@pytest.mark.filterwarnings("ignore:Batched sampling not implemented")
@pytest.mark.slow
def test_trained_posteriors(trained, fresh):
    theta, x = fresh["theta"][:15], fresh["x"][:15]
    rejection = RejectionPosterior(exact_potential, PRIOR, num_samples_to_find_max=100)
    named = {"truth": Exact().sample((200,), X_O), **trained, "rejection": rejection}
    result = run(named, reference="truth", theta=theta, x=x, num_posterior_samples=50)
    assert list(result.posteriors["posterior"]) == list(named)
    assert set(result.posteriors.columns) >= {*DISTANCES, *HELD_OUT, "pareto_k", "ess"}
    assert result.posteriors[DISTANCES][1:].notna().all(axis=None)
    for name, posterior in trained.items():
        nll = -posterior.log_prob_batched(theta[None], x)[0]
        # NPE's leakage, and the energy's normaliser, are estimates.
        expected = pytest.approx(float(nll.mean()), abs=0.05)
        assert cell(result, "nll", name) == expected
        for column in ("coverage_50", "coverage_90"):
            assert 0 < cell(result, column, name) <= 1
    for column in HELD_OUT:
        assert np.isnan(cell(result, column, "truth"))
        told = column.startswith("coverage")
        assert np.isfinite(cell(result, column, "rejection")) == told
    for name, known in {"JNPE": True, "energy": True, "NPE": False}.items():
        for column in ("pareto_k", "ess", "kl_flow_energy"):
            assert np.isfinite(cell(result, column, name)) == known


def test_what_was_exported_can_be_compared(trained, container):
    names = {"rate": 0, "rest": [1]}
    options = {"parameter_names": names, "show_progress_bars": False, "seed": 0}
    data = to_inference_data(trained["JNPE"], X_O, num_samples=100, **options)
    assert type(data).__name__ == container
    direct = run(trained["JNPE"], parameter_names=names)
    assert list(direct.parameters["parameter"]) == ["rate", "rest[0]"]
    for some in (run(data, None), run({"posterior": data}, None)):
        pd.testing.assert_frame_equal(some.parameters, direct.parameters)
        pd.testing.assert_frame_equal(some.posteriors, direct.posteriors)
    both = run(
        {"saved": data, "new": trained["JNPE"]}, reference="saved", parameter_names=names
    )
    assert cell(both, "sliced_wasserstein", "new") == 0
    with pytest.raises(ValueError, match=r"same parameters, got \['rate', 'rest\[0\]'\]"):
        run({"saved": data, "new": trained["JNPE"]})


def test_exported_samples_that_are_not_finite_are_refused():
    data = to_inference_data(torch.randn(30, 2), show_progress_bars=False)
    data["posterior"]["theta"].values[0, 3, 1] = np.nan
    with pytest.raises(ValueError, match="draws of 'a', got 30 draws with 1 values"):
        run({"a": data}, None)


def test_a_seed_gives_the_same_and_disturbs_nothing(trained, fresh):
    options = {name: each[:20] for name, each in fresh.items()}
    named = {"truth": Exact(), "JNPE": trained["JNPE"]}
    before = torch.get_rng_state()
    first = run(named, reference="truth", num_posterior_samples=20, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    again = run(named, reference="truth", num_posterior_samples=20, **options)
    pd.testing.assert_frame_equal(first.parameters, again.parameters)
    pd.testing.assert_frame_equal(first.posteriors, again.posteriors)


def test_duplicates_and_constants_do_not_matter():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(5, 2))[rng.integers(5, size=100)]
    half = np.stack([few[:, 0], np.ones(100)], -1)
    named = {"few": few, "half": half, "constant": np.zeros((100, 2))}
    for reference in ("few", "constant"):
        result = run(named, None, reference=reference)
        others = result.posteriors[result.posteriors["posterior"] != reference]
        assert np.isfinite(others[DISTANCES]).all(axis=None)
    assert cell(result, "c2st_random_forest", "few") > 0.95


def test_the_tables_can_be_read():
    rng = np.random.default_rng(0)
    result = run(
        {"truth": rng.normal(size=(4, 500, 1)), "other": rng.normal(size=(2000, 1))},
        None,
        reference="truth",
        classifiers=(),
        parameter_names=["rate"],
    )
    assert isinstance(result, Comparison)
    assert isinstance(result.parameters, pd.DataFrame)
    parameters, posteriors = str(result).split("\n\n")
    assert parameters.split()[:3] == ["parameter", "posterior", "mean"]
    assert len(parameters.splitlines()) == len(posteriors.splitlines()) == 3
    truth = posteriors.splitlines()[1].split()
    assert truth[:3] == ["truth", "2000", "-"]
    html = result._repr_html_()
    assert html.count("<table") == 2
    assert all(f"<td>{cell}</td>" in html for cell in truth)
    parameters, posteriors = result.to_markdown().split("\n\n")
    assert parameters.startswith("| parameter")
    assert len(posteriors.splitlines()) == 4
    assert "e+0" not in str(result)
    with pytest.raises(AttributeError):
        result.reference = "other"


def test_without_tabulate_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tabulate", None)
    result = run({"some": torch.randn(30, 2)}, None)
    with pytest.raises(ImportError, match=r"needs tabulate: .*sbi_jeffreys\[export\]"):
        result.to_markdown()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "none"}, r"`reference` .* \['a', 'b'\], got 'none'"),
        ({"classifiers": ("svm",)}, r"`classifiers` among .* got \('svm',\)"),
        ({"classifiers": "rf"}, "`classifiers`"),
        ({"hdi_prob": 94}, "`hdi_prob` .* got 94"),
        ({"hdi_prob": 0}, "`hdi_prob` .* got 0"),
        ({"parameter_names": ["one"]}, "2 different `parameter_names`"),
        ({"parameter_names": ["one", "one"]}, "2 different `parameter_names`"),
        ({"parameter_names": ["one", "draw"]}, r"names` than \['draw'\]"),
        ({"num_samples": 19}, "`num_samples` .* at least 20, got 19"),
        ({"theta": torch.zeros(5, 2)}, "both `theta` and `x`, got no `x`"),
        ({"x": torch.zeros(5, 2)}, "both `theta` and `x`, got no `theta`"),
        ({"theta": torch.zeros(5, 2), "x": torch.zeros(4, 2)}, r"and \(4, 2\)"),
        ({"theta": torch.zeros(20, 3), "x": torch.zeros(20, 2)}, r"\(N, 2\).* \(20, 3\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    samples = torch.randn(30, 2)
    with pytest.raises(ValueError, match=message):
        run({"a": samples, "b": samples}, None, **options)


@pytest.mark.parametrize(
    ("x_o", "message"),
    [
        (None, "Expected `x_o`: FlowPosterior has no default x"),
        (torch.zeros(3), r"`x_o` of shape \(2,\).* got \(3,\)"),
        (torch.tensor([0.0, torch.inf]), "`x_o` to be finite"),
    ],
)
def test_observations_that_do_not_fit_are_refused(trained, x_o, message):
    with pytest.raises(ValueError, match=message):
        run({"JNPE": trained["JNPE"]}, x_o)


def test_constant_parameters_of_the_reference_have_shifts_in_their_units():
    """In single precision, too, where the standard deviation of equal numbers isn't 0."""
    torch.manual_seed(0)
    one, other = (
        torch.stack([torch.randn(2000), torch.full((2000,), value)], 1)
        for value in (0.1, 0.1001)
    )
    got = run({"a": one, "b": other}, None, reference="a", classifiers=())
    shift = cell(got, "mean_shift", "b", got.parameters.parameter.iloc[-1])
    assert shift == pytest.approx(1e-4, rel=1e-2)
    assert cell(got, "max_mean_shift", "b") < 0.2
    assert cell(got, "sliced_wasserstein", "b") < 0.2


def test_fresh_simulations_are_looked_at_before_sampling():
    class Untouched:
        def sample(self, *args, **kwargs):
            raise AssertionError

    posteriors = {"a": Untouched()}
    with pytest.raises(ValueError, match=r"at least 10 simulations .* got 5"):
        run(posteriors, theta=torch.zeros(5, 2), x=torch.zeros(5, 3))
    with pytest.raises(ValueError, match="finite `theta`, but 20 of 20"):
        run(posteriors, theta=torch.full((20, 2), torch.nan), x=torch.zeros(20, 3))
    with pytest.raises(ValueError, match="`num_posterior_samples` to be at least 1"):
        run(posteriors, num_posterior_samples=0)


def test_posteriors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="none"):
        run({}, None)
    with pytest.raises(TypeError, match="got a MultivariateNormal"):
        run({"a": PRIOR}, None)
    with pytest.raises(ValueError, match="at least 20 finite draws of 'a', got 19"):
        run({"a": torch.zeros(19, 2)}, None)
    with pytest.raises(ValueError, match="same parameters"):
        run({"a": torch.zeros(30, 2), "b": torch.zeros(30, 1)}, None)
    samples = torch.zeros(30, 2)
    samples[4, 1] = torch.inf
    with pytest.raises(ValueError, match="finite samples, but 1 of 30"):
        run({"a": samples}, None)
    bad = {"theta": torch.zeros(5, 2), "x": torch.full((5, 2), np.nan)}
    with pytest.raises(ValueError, match="at least 10 simulations"):
        run({"a": torch.zeros(30, 2)}, None, **bad)
