"""Posteriors of all kinds as arviz's InferenceData."""

import random
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import xarray
from sbi.inference import FMPE, NLE, NPE, EnsemblePosterior
from sbi.inference.posteriors import (
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
    VIPosterior,
)
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.samplers.mcmc import SliceSamplerSerial, SliceSamplerVectorized
from torch.distributions import MultivariateNormal

from sbi_jeffreys import JNPE, _arviz
from sbi_jeffreys._arviz import summary
from sbi_jeffreys.diagnostics.draws import Draws, draw, is_normalised
from sbi_jeffreys.diagnostics.inference_data import to_inference_data
from sbi_jeffreys.diagnostics.observations import condition_shape
from sbi_jeffreys.posteriors import several_observations
from sbi_jeffreys.sampling.random_state import random_state
from tests.conftest import fit_in_few_steps

pytestmark = pytest.mark.filterwarnings("ignore:Pareto k is above")

PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))
X_O = torch.tensor([0.5, -0.2, 0.1])
NAMES = ["rate", "scale"]


def simulator(theta):
    x = torch.cat([theta, theta.sum(-1, keepdim=True)], -1)
    return x + 0.1 * torch.randn_like(x)


def simulate_by_numpy(theta):
    return torch.from_numpy(theta.numpy() @ np.ones((2, 3), dtype=np.float32))


def bad_simulator(theta):
    return theta[:1]


def potential(theta, x_o):
    """Unnormalised posterior of a Gaussian with mean x_o[:2] and variance 1."""
    return -0.5 * ((theta - x_o[:, :2]) ** 2).sum(-1)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    theta = PRIOR.sample((200,))
    x = simulator(theta)
    result = {}
    methods = {"NPE": NPE, "FMPE": FMPE, "NLE": NLE, "JNPE": JNPE}
    with pytest.MonkeyPatch.context() as monkeypatch:
        fit_in_few_steps(monkeypatch)
        for name, method in methods.items():
            trainer = method(PRIOR, show_progress_bars=False)
            trainer.append_simulations(theta, x).train(max_num_epochs=2)
            result[name] = trainer
    return result


@pytest.fixture(scope="module")
def flow(trained):
    return trained["JNPE"].build_posterior()


@pytest.fixture(scope="module")
def energy(trained):
    return trained["JNPE"].build_posterior(sample_with="energy")


def open_netcdf(path, container):
    if container == "DataTree":
        return xarray.open_datatree(path)
    return _arviz.load_arviz().from_netcdf(path)


def export(posteriors, x_o=X_O, **options):
    options = {"num_samples": 40, "seed": 0, "show_progress_bars": False, **options}
    return to_inference_data(posteriors, x_o, **options)


def values(data, group="posterior", name="theta"):
    return data[group][name].values


def mcmc(method="slice_np_vectorized", **options):
    options = {"num_chains": 3, "warmup_steps": 5, "init_strategy": "proposal", **options}
    return MCMCPosterior(potential, PRIOR, method=method, **options)


def test_groups_variables_and_dimensions(flow, container):
    data = export(flow, prior=PRIOR, simulator=simulator, num_predictive=np.int64(12))
    shapes = {
        ("posterior", "theta"): (4, 10, 2),
        ("sample_stats", "lp"): (4, 10),
        ("sample_stats", "log_weight"): (4, 10),
        ("prior", "theta"): (1, 40, 2),
        ("prior_predictive", "x"): (1, 12, 3),
        ("posterior_predictive", "x"): (4, 3, 3),
        ("observed_data", "x"): (3,),
        ("log_prior", "all_parameters"): (4, 10),
        ("log_likelihood", "x"): (4, 10),
    }
    assert type(data).__name__ == container
    assert "constant_data" not in data
    for (group, name), shape in shapes.items():
        assert data[group][name].shape == shape
    assert data["posterior"]["theta"].dims[:2] == ("chain", "draw")
    np.testing.assert_array_equal(values(data, "observed_data", "x"), X_O)
    attrs = dict(data.attrs)
    assert attrs["method"] == "FlowPosterior"
    assert attrs["num_simulations"] == 200
    assert attrs["sampler"] == "independent draws"
    assert attrs["seed"] == 0
    assert attrs["torch_version"] == version("torch")
    for name in ("sbi_jeffreys", "sbi", "arviz", "numpy"):
        assert attrs[f"{name}_version"]
    assert "created_at" in data["posterior"].attrs


@pytest.mark.parametrize("name", ["NPE", "FMPE", "flow", "energy"])
def test_lp_is_the_normalised_log_density(name, trained, flow, energy):
    posterior = {"flow": flow, "energy": energy}.get(name)
    posterior = posterior or trained[name].build_posterior()
    data = export(posterior)
    assert data["sample_stats"].attrs["lp_is_normalised"] == 1
    theta = torch.from_numpy(values(data)).flatten(0, 1)
    expected = posterior.log_prob(theta, x=X_O[None]).detach()
    got = values(data, "sample_stats", "lp")
    # Of NPE and the energy the normaliser is estimated from samples.
    atol = {"NPE": 0.05, "FMPE": 1e-3}.get(name, 1e-5)
    np.testing.assert_allclose(got.ravel(), expected, atol=atol)


def test_the_log_ratio_is_the_likelihoods_surrogate(trained, flow, energy):
    """With a learned likelihood it is this likelihood itself."""
    nle = trained["NLE"].build_posterior(
        posterior_parameters=MCMCPosteriorParameters(
            num_chains=4, warmup_steps=1, init_strategy="proposal"
        )
    )
    for posterior in (flow, energy, nle):
        data = export(posterior)
        theta = torch.from_numpy(values(data)).flatten(0, 1)
        log_prior = values(data, "log_prior", "all_parameters").ravel()
        np.testing.assert_allclose(log_prior, PRIOR.log_prob(theta), atol=1e-5)
        ratio = values(data, "log_likelihood", "x").ravel()
        lp = values(data, "sample_stats", "lp").ravel()
        np.testing.assert_allclose(ratio, lp - log_prior, atol=1e-5)
    likelihood = nle.potential_fn.likelihood_estimator.log_prob(
        X_O.expand(1, len(theta), -1), theta
    )
    np.testing.assert_allclose(ratio, likelihood[0].detach(), atol=1e-4)


def test_without_a_proper_prior_there_is_no_log_ratio(trained):
    theta, x, _ = trained["NPE"].get_simulations()
    trainer = NPE(show_progress_bars=False).append_simulations(theta, x)
    trainer.train(max_num_epochs=1)
    data = export(trainer.build_posterior())
    assert "log_prior" not in data
    assert "log_likelihood" not in data


def test_flow_and_energy_tell_weights_and_agreement(flow, energy):
    data = export({"flow": flow, "energy": energy}, num_samples=400)
    for name, each in data.items():
        theta = torch.from_numpy(values(each)).flatten(0, 1)
        weights = energy.potential(theta, x=X_O) - flow.log_prob(theta, x=X_O)
        got = values(each, "sample_stats", "log_weight").ravel()
        np.testing.assert_allclose(got, weights, rtol=1e-6, atol=1e-4)
        attrs = each["sample_stats"].attrs
        assert 0 < attrs["ess"] <= 1
        assert attrs["verdict"]
        for number in ("kl_flow_energy", "pareto_k", "log_z", "x_p_value"):
            assert isinstance(attrs[number], float)
        assert (
            each.attrs["method"] == type({"flow": flow, "energy": energy}[name]).__name__
        )


def test_sbis_samplers_of_the_energy_tell_the_shape_of_x(trained, flow, energy):
    """Without it, one x of several axes would be taken for several of one axis less."""
    chains = trained["JNPE"].build_posterior(
        sample_with="energy", posterior_parameters=MCMCPosteriorParameters()
    )
    of_flow = trained["JNPE"].build_posterior(sample_with="rejection")
    for posterior in (flow, energy, chains, of_flow):
        assert condition_shape(posterior) == X_O.shape[-1:]


def test_several_observations_of_the_same_parameters(energy, monkeypatch):
    monkeypatch.setattr(several_observations, "MIN_PARTICLES", 100)
    several = X_O + 0.1 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    data = export(
        energy,
        several,
        prior=PRIOR,
        simulator=simulator,
        num_predictive=8,
        dims={"x": ["statistic"]},
    )
    assert data["observed_data"]["x"].dims == ("observation", "statistic")
    np.testing.assert_array_equal(values(data, "observed_data", "x"), several)
    predictive = data["posterior_predictive"]["x"]
    assert predictive.shape == (4, 2, 4, 3)
    assert data["prior_predictive"]["x"].shape == (1, 8, 4, 3)
    theta = torch.from_numpy(values(data))[:, :2]
    close = abs(predictive.values[..., :2] - theta[:, :, None].numpy())
    assert close.max() < 0.8  # 8 standard deviations of the noise
    assert "log_weight" not in data["sample_stats"]
    np.testing.assert_array_equal(values(data, "constant_data", "x"), several)
    ratios = data["log_likelihood"]["x"]
    assert ratios.dims == ("chain", "draw", "observation")
    draws = torch.from_numpy(values(data)).flatten(0, 1)
    for i, x in enumerate(several):
        expected = energy.potential(draws, x=x) - PRIOR.log_prob(draws)
        got = ratios.values[..., i].ravel()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    joint = values(data, "log_prior", "all_parameters") + ratios.values.sum(-1)
    constant = joint - values(data, "sample_stats", "lp")  # of which lp is normalised
    assert np.ptp(constant) < 1e-3


def test_parameters_can_be_named(flow):
    data = export(flow, parameter_names=NAMES)
    whole = values(export(flow))
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(values(data, name=name), whole[..., i])
    vector = export(
        whole,
        parameter_names={"second": 1, "vector": [0]},
        dims={"vector": ["axis"]},
        coords={"axis": ["left"]},
    )
    np.testing.assert_array_equal(values(vector, name="second"), whole[..., 1])
    np.testing.assert_array_equal(values(vector, name="vector"), whole[..., :1])
    assert vector["posterior"]["vector"].dims == ("chain", "draw", "axis")
    assert list(vector["posterior"]["axis"].values) == ["left"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one"], "2 different `parameter_names`"),
        (["one", "one"], "2 different"),
        ("ab", "got 'ab'"),
        ({"a": 0}, "columns 0 to 1 once"),
        ({"a": 0, "b": [0, 1]}, "columns 0 to 1 once"),
        ({"a": [0, 2]}, "columns 0 to 1 once"),
        (["chain", "b"], r"other `parameter_names` than \['chain'\]"),
        (["a", "draw"], r"other `parameter_names` than \['draw'\]"),
    ],
)
def test_names_that_do_not_fit_show_before_any_work(monkeypatch, flow, names, message):
    monkeypatch.setattr(flow, "sample", None)
    with pytest.raises(ValueError, match=message):
        export(flow, parameter_names=names)


def test_dimensions_that_do_not_fit_show_before_any_work(monkeypatch, flow):
    monkeypatch.setattr(flow, "sample", None)
    with pytest.raises(ValueError, match="axis"):
        export(flow, dims={"theta": ["axis"]}, coords={"axis": ["a", "b", "c"]})


@pytest.mark.parametrize("method", ["slice_np_vectorized", "slice_np"])
@pytest.mark.parametrize("thin", [1, 2])
def test_chains_of_mcmc_are_those_that_ran(monkeypatch, method, thin):
    sampler = SliceSamplerVectorized if "vec" in method else SliceSamplerSerial
    ran = []
    run = sampler.run

    def recorded(self, num_samples):
        ran.append(run(self, num_samples))
        return ran[-1]

    monkeypatch.setattr(sampler, "run", recorded)
    posterior = mcmc(method, thin=thin)
    data = export(posterior, num_samples=23)
    assert values(data).shape == (3, 8, 2)
    np.testing.assert_array_equal(values(data), ran[0][:, 5:].astype(np.float32))
    theta = torch.from_numpy(values(data)).flatten(0, 1)
    lp = values(data, "sample_stats", "lp").ravel()
    np.testing.assert_allclose(lp, potential(theta, X_O[None]), rtol=1e-5)
    assert data["sample_stats"].attrs["lp_is_normalised"] == 0
    attrs = data.attrs
    assert (attrs["sampler"], attrs["mcmc_method"]) == ("Markov chains", method)
    assert (attrs["thin"], attrs["warmup_steps"]) == (thin, 5)
    assert values(export(posterior, num_chains=2)).shape == (2, 20, 2)


def test_chains_that_are_stuck_show_in_r_hat():
    """Chains start in one of two far modes and stay; all in the same one in 1 of 128."""

    def two_modes(theta, x_o):
        return -0.5 * (theta.abs() - 50).square().sum(-1)

    wide = MultivariateNormal(torch.zeros(2), 2500 * torch.eye(2))
    posterior = MCMCPosterior(
        two_modes, wide, num_chains=8, warmup_steps=10, init_strategy="proposal"
    )
    data = export(posterior, torch.zeros(1), num_samples=8 * 10)
    assert (np.sign(values(data)) == np.sign(values(data)[:, :1])).all()
    assert (summary(values(data)).r_hat > 1.4).all()


def test_pyro_tells_of_divergences():
    pytest.importorskip("pyro")
    data = export(mcmc("nuts_pyro", num_chains=1, thin=2), num_samples=10)
    assert values(data).shape == (1, 10, 2)
    stats = data["sample_stats"]
    assert stats["diverging"].dtype == bool
    assert stats["diverging"].shape == stats["acceptance_rate"].shape == (1, 10)
    assert (stats["acceptance_rate"].values > 0).all()


class Sampler:
    """What Pyro would tell after 2 chains of 3 draws, every second of 6 steps."""

    def diagnostics(self):
        return {
            "divergences": {"chain 0": [], "chain 1": [1, 4]},
            "acceptance rate": {"chain 0": 0.9, "chain 1": 0.5},
        }


def test_pyros_chains_stay_apart(monkeypatch):
    """Pyro returns chains one after the other; without its processes, which are slow."""
    steps = torch.arange(12.0)[:, None].expand(-1, 2)

    def run(self, num_samples, thin, num_chains, **kwargs):
        self._posterior_sampler = Sampler()
        assert (num_samples, num_chains) == (6, 2)
        return steps[::thin]

    monkeypatch.setattr(MCMCPosterior, "_pyro_mcmc", run)
    data = export(mcmc("nuts_pyro", num_chains=2, thin=2), num_samples=5)
    np.testing.assert_array_equal(values(data)[..., 0], [[0, 2, 4], [6, 8, 10]])
    stats = data["sample_stats"]
    np.testing.assert_array_equal(
        stats["diverging"].values, [[False] * 3, [True, False, True]]
    )
    np.testing.assert_array_equal(stats["acceptance_rate"].values, [[0.9] * 3, [0.5] * 3])


@pytest.mark.very_slow
def test_pyros_processes_are_chains():
    posterior = mcmc("hmc_pyro", num_chains=2, mp_context="fork")
    data = export(posterior, num_samples=20)
    assert values(data).shape == (2, 10, 2)
    assert data["sample_stats"]["acceptance_rate"].shape == (2, 10)


def test_sbis_other_posteriors(trained):
    rejection = RejectionPosterior(potential, PRIOR, num_samples_to_find_max=100)
    importance = ImportanceSamplingPosterior(potential, PRIOR, method="importance")
    nle = trained["NLE"].build_posterior(
        posterior_parameters=MCMCPosteriorParameters(
            num_chains=4, warmup_steps=1, init_strategy="proposal"
        )
    )
    vi = VIPosterior(potential, PRIOR).set_default_x(X_O)
    vi.train(max_num_iters=3, quality_control=False, show_progress_bar=False)
    data = export(
        {"rejection": rejection, "importance": importance, "nle": nle, "vi": vi},
        num_samples=8,
    )
    for name, each in data.items():
        assert values(each).shape == (4, 2, 2)
        assert data[name]["sample_stats"].attrs["lp_is_normalised"] == (name == "vi")
    assert data["nle"].attrs["sampler"] == "Markov chains"
    assert data["rejection"].attrs["sampler"] == "independent draws"


def test_an_ensembles_members_are_mixed(trained):
    """All of one member's draws come first in sbi. With one far away, a chain of 100
    draws holds 50 ± 5 of each."""
    near = trained["NPE"].build_posterior()

    class Far(type(near)):
        def sample(self, *args, **kwargs):
            return super().sample(*args, **kwargs) + 100

    far = Far(near.posterior_estimator, PRIOR)
    ensemble = EnsemblePosterior([near, far])
    assert not is_normalised(EnsemblePosterior([far, near]))
    assert is_normalised(ensemble)  # a Far is a DirectPosterior, as the first one is
    data = export(ensemble, num_samples=400)
    share = (values(data)[..., 0] > 50).mean(-1)
    assert (abs(share - 0.5) < 0.3).all()


def test_samples_of_any_origin():
    samples = torch.randn(50, 2, dtype=torch.float64)
    data = export({"reference": samples, "chains": samples.numpy().reshape(5, 10, 2)})
    np.testing.assert_array_equal(values(data["reference"]), samples[None])
    np.testing.assert_array_equal(values(data["chains"]).reshape(50, 2), samples)
    assert data["chains"].attrs["sampler"] == "Markov chains"
    alone = export(samples, None)
    for group in ("observed_data", "sample_stats"):
        with pytest.raises((KeyError, AttributeError)):
            alone[group]
    assert values(export(samples, simulator=simulator), "posterior_predictive", "x").shape


def test_the_observation_is_the_posteriors_own_by_default(trained):
    posterior = trained["NPE"].build_posterior()
    with pytest.raises(ValueError, match="Expected `x_o`: DirectPosterior has no"):
        export(posterior, None)
    posterior.set_default_x(X_O)
    data = export(posterior, None)
    np.testing.assert_array_equal(values(data, "observed_data", "x"), X_O)
    np.testing.assert_array_equal(values(data), values(export(posterior, X_O.numpy())))
    np.testing.assert_array_equal(values(data), values(export(posterior, X_O[None])))


def generator_states():
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    return python, numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist(), cudnn


@pytest.mark.parametrize("kind", ["flow", "energy", "mcmc"])
def test_a_seed_gives_the_same_and_disturbs_nothing(flow, energy, kind):
    """Also where a posterior remembers its normaliser from the first time."""
    posterior = {"flow": flow, "energy": energy}.get(kind) or mcmc()
    options = {"prior": PRIOR, "simulator": simulator, "num_predictive": 4}
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    before = generator_states()
    first = export(posterior, **options)
    assert generator_states() == before
    torch.randn(3)
    same, other = export(posterior, **options), export(posterior, seed=1, **options)
    free = export(posterior, seed=None, **options)
    for group, name in (
        ("posterior", "theta"),
        ("prior", "theta"),
        ("prior_predictive", "x"),
        ("posterior_predictive", "x"),
    ):
        expected = values(first, group, name)
        np.testing.assert_array_equal(values(same, group, name), expected)
        assert (values(other, group, name) != expected).any()
        assert (values(free, group, name) != expected).any()


def test_a_seed_does_not_repeat_the_numbers_of_the_prior(flow):
    torch.manual_seed(0)
    drawn = PRIOR.sample((40,))
    assert (values(export(flow, prior=PRIOR), "prior")[0] != drawn.numpy()).all()
    with random_state(0, stream=0):
        first = torch.randn(5)
    with random_state(0, stream=1):
        assert (torch.randn(5) != first).all()


def test_a_posterior_does_not_depend_on_those_beside_it(flow, energy):
    both = export({"energy": energy, "flow": flow})
    np.testing.assert_array_equal(values(both["flow"]), values(export(flow)))


@pytest.mark.parametrize("simulate", [simulator, simulate_by_numpy])
def test_workers_simulate_what_one_process_does(flow, simulate):
    data = export(
        flow,
        simulator=simulate,
        num_workers=2,
        simulation_batch_size=3,
        num_predictive=20,
    )
    x = values(data, "posterior_predictive", "x")
    theta = values(data)[:, : x.shape[1]]
    assert x.shape == (4, 5, 3)
    if simulate is simulate_by_numpy:
        np.testing.assert_allclose(x, theta.sum(-1, keepdims=True).repeat(3, -1))
    else:
        assert abs(x[..., :2] - theta).max() < 0.8
        assert len(np.unique(x[..., 0] - theta[..., 0])) == 20


def test_simulators_are_given_single_precision():
    """Samples of MCMC are often of double precision, and simulators not made for it."""
    samples = np.random.default_rng(0).normal(size=(100, 2))
    matrix = torch.ones(2, 3)
    data = export(samples, simulator=lambda theta: theta @ matrix)
    assert values(data, "posterior_predictive", "x").dtype == np.float32


def test_simulators_that_do_not_fit_are_refused(flow):
    with pytest.raises(ValueError, match=r"`simulator` .* \(100, \*x\) .* got \(1, 2\)"):
        export(flow, simulator=bad_simulator, num_samples=200)
    with pytest.raises(ValueError, match=r"like `x_o`, of shape \(3,\) .* got \(2,\)"):
        export(flow, simulator=lambda theta: theta)
    with pytest.raises(ValueError, match="got ndarray"):
        export(flow, simulator=lambda theta: theta.numpy())
    with pytest.raises(TypeError, match="`simulator` to be callable, got int"):
        export(flow, simulator=3)


def failing(number, error):
    """Return a simulator of which a call fails, counted from one."""
    calls = []

    def sometimes(theta):
        calls.append(len(theta))
        if len(calls) == number:
            raise error
        return simulator(theta)[: None if len(calls) != number + 2 else -1]

    return sometimes


@pytest.mark.parametrize(
    ("number", "error", "num_lost"), [(3, RuntimeError("no luck"), 20), (4, None, 70)]
)
def test_what_a_simulator_finished_is_kept(flow, number, error, num_lost):
    """Ten calls of ten draws each. One raises, and one returns too few rows; or the
    fourth is interrupted, and those after it are not made."""
    simulate = failing(number, error or KeyboardInterrupt)
    options = {"num_samples": 100, "num_predictive": 100, "simulation_batch_size": 10}
    words = (
        rf"{num_lost} of 100 simulations by `sometimes` .*{'no luck' if error else ''}"
    )
    with pytest.warns(UserWarning, match=words):
        data = export(flow, simulator=simulate, **options)
    x = values(data, "posterior_predictive", "x")
    assert np.isnan(x).all(-1).sum() == np.isnan(x).any(-1).sum() == num_lost
    assert data["posterior_predictive"].attrs["num_invalid"] == num_lost
    theta = values(data)
    ones = np.isfinite(x).all(-1)
    assert abs(x[ones][:, :2] - theta[ones]).max() < 0.8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_draws_are_kept_if_no_simulation_is_done(flow, energy, error):
    def never(theta):
        raise error("no luck")

    with pytest.raises(error, match="no luck") as raised:
        export({"flow": flow, "energy": energy}, simulator=never)
    partial = raised.value.partial
    assert list(partial) == ["flow"]
    np.testing.assert_array_equal(values(partial["flow"]), values(export(flow)))
    with pytest.raises(error, match="no luck"):
        export(flow, simulator=never, num_workers=2, simulation_batch_size=3)


def test_a_predictive_without_failures_counts_none(flow):
    data = export(flow, simulator=simulator)
    assert "num_invalid" not in data["posterior_predictive"].attrs


def test_what_is_no_posterior_is_refused(flow):
    with pytest.raises(TypeError, match="got a MultivariateNormal"):
        export(PRIOR)
    with pytest.raises(ValueError, match="none"):
        export({})
    with pytest.raises(ValueError, match=r"same parameters, got \[2, 3\]"):
        export({"flow": flow, "others": torch.zeros(5, 3)})
    wider = MultivariateNormal(torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"`prior` of the same parameters, got \[2, 3\]"):
        export(flow, prior=wider)
    for samples in (torch.zeros(5), torch.zeros(0, 2), torch.zeros(1, 2, 3, 4)):
        with pytest.raises(ValueError, match="Expected samples of shape"):
            export(samples)
    with pytest.raises(ValueError, match="finite samples, but 2 of 3 have"):
        export({"bad": torch.tensor([[0.0, np.nan], [np.inf, 0.0], [0.0, 0.0]])})
    for name in (
        "num_samples",
        "num_chains",
        "num_predictive",
        "num_workers",
        "simulation_batch_size",
    ):
        for number in (0, 1.5):
            with pytest.raises(ValueError, match=f"`{name}` .* got {number}"):
                export(flow, **{name: number})


@pytest.mark.parametrize(
    ("x_o", "message"),
    [
        (torch.zeros(2), r"`x_o` of shape \(3,\).* got \(2,\)"),
        (torch.zeros(2, 2, 3), r"got \(2, 2, 3\)"),
        (torch.tensor([0.0, np.nan, 0.0]), "`x_o` to be finite"),
        (torch.tensor([0.0, np.inf, 0.0]), "`x_o` to be finite"),
    ],
)
def test_observations_that_do_not_fit_are_refused(flow, x_o, message):
    with pytest.raises(ValueError, match=message):
        export(flow, x_o)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.full((40, 2), np.nan), "finite samples of FlowPosterior, but 40 of 40"),
        (torch.zeros(40, 2, 2), r"shape \(40, D\) from FlowPosterior, got \(40, 2, 2\)"),
    ],
)
def test_samples_that_are_none_are_refused(monkeypatch, flow, samples, message):
    monkeypatch.setattr(flow, "sample", lambda *args, **kwargs: samples)
    with pytest.raises(ValueError, match=message):
        export(flow)


def test_everything_survives_netcdf(tmp_path, flow, container):
    method = "nuts_pyro" if find_spec("pyro") else "slice_np_vectorized"
    options = {"prior": PRIOR, "simulator": simulator, "num_predictive": 8}
    data = export(
        {"flow": flow, "mcmc": mcmc(method, num_chains=1)},
        parameter_names=NAMES,
        dims={"x": ["statistic"]},
        coords={"statistic": ["a", "b", "sum"]},
        attrs={"experiment": "seven"},
        **options,
    )
    for name, each in data.items():
        path = str(tmp_path / f"{name}.nc")
        each.to_netcdf(path)
        opened = open_netcdf(path, container)
        assert dict(opened.attrs) == dict(each.attrs)
        assert opened.attrs["experiment"] == "seven"
        groups = ["posterior", "sample_stats", "prior", "prior_predictive"]
        for group in (*groups, "posterior_predictive", "observed_data"):
            before, after = each[group], opened[group]
            assert list(after.attrs) == list(before.attrs)
            for key, value in before.attrs.items():
                np.testing.assert_array_equal(after.attrs[key], value)
            assert set(after.data_vars) == set(before.data_vars)
            for variable in before.data_vars:
                assert after[variable].equals(before[variable])
                assert after[variable].dtype == before[variable].dtype


def test_arviz_takes_it(flow):
    """Its summary, of the installed kind, agrees with that of the draws.

    In single precision, distances from the median are rounded, and R-hat ranks them."""
    data = export(flow, num_samples=400)
    posterior = data["posterior"]
    if type(data).__name__ == "DataTree":
        posterior = posterior.to_dataset()
    double = posterior.astype(float)
    table = _arviz.load_arviz().summary(double, round_to="none")
    expected = summary(values(data))
    assert list(table.index) == ["theta[0]", "theta[1]"]
    np.testing.assert_allclose(table["mean"].astype(float), expected.mean, rtol=1e-5)
    np.testing.assert_allclose(table["r_hat"].astype(float), expected.r_hat, rtol=1e-5)


def test_draws_are_a_tuple_of_arrays(flow):
    drawn = draw(flow, X_O[None], 8, 2, show_progress_bars=False)
    assert isinstance(drawn, Draws)
    assert drawn.theta.shape == (2, 4, 2)


@pytest.mark.gpu
def test_posteriors_on_a_gpu_give_the_same_groups(flow, energy):
    try:
        for posterior in (flow, energy):
            posterior.to("cuda")
            data = export(posterior, simulator=simulator, num_predictive=4)
            assert values(data).shape == (4, 10, 2)
            assert np.isfinite(values(data, "sample_stats", "log_weight")).all()
    finally:
        flow.to("cpu")
        energy.to("cpu")
