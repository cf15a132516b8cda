"""The energy as a posterior: sbi's interface, and whether its samples are right."""

import math
import pickle
import warnings

import pytest
import torch
from sbi.analysis import pairplot
from sbi.diagnostics import LC2ST, run_sbc, run_tarp
from sbi.inference.posteriors.posterior_parameters import (
    DirectPosteriorParameters,
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.utils import BoxUniform
from torch.distributions import MultivariateNormal, Uniform

from sbi_jeffreys import JNPE, EnergyPosteriorParameters
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.posteriors import corrected_sampler, several_observations
from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from sbi_jeffreys.posteriors.sbi_samplers import FlowProposal, sampled_by_sbi
from tests.closed_forms import ConjugateGaussian
from tests.conftest import fit_in_few_steps

TASK = ConjugateGaussian(dim=2)
THETA, X = TASK.simulate(200, seed=1)
QUIET = {"show_progress_bars": False}


def make_posterior(width=1.3, shift=0.3, prior=TASK.prior, **options):
    parameters = EnergyPosteriorParameters(**options)
    return EnergyPosterior(
        TASK.pair(width, shift), prior, Novelty(X), parameters=parameters
    )


def standardised(samples, x):
    """Samples in units of the exact posterior given x, of shape `(n, D)`."""
    mean, variance = TASK.posterior(x)
    return (samples - mean) / math.sqrt(variance)


# ----------------------------------------------------------- samples and densities


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (0,)])
def test_shapes_are_those_of_sbi(shape):
    posterior = make_posterior()
    for x in (X[0], X[:1]):
        assert posterior.sample(shape, x=x, **QUIET).shape == (*shape, 2)
    assert posterior.sample(shape, x=X[:3], **QUIET).shape == (*shape, 2)
    assert posterior.sample_batched(shape, X[:3], **QUIET).shape == (*shape, 3, 2)


@pytest.mark.parametrize(("width", "shift"), [(1.0, 0.0), (1.5, 0.5), (0.8, 0.3)])
def test_the_flow_is_corrected(width, shift):
    """100 observations with 1,000 samples each, chosen from 2,000 effective draws. The
    standard error of a mean is at most 0.0045, that of a standard deviation 0.003, and
    five of them are allowed. Besides, up to 1 % of the probability is displaced, by about
    two standard deviations."""
    torch.manual_seed(0)
    posterior = make_posterior(width, shift)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = posterior.sample_batched((1000,), X[:100], **QUIET)
    z = torch.cat(
        [standardised(samples[:, i], X[i : i + 1]) for i in range(len(samples[0]))]
    )
    assert z.mean(0).abs().max() < 0.023 + 0.02
    assert (z.std(0) - 1).abs().max() < 0.015 + 0.02


def test_samples_of_a_flow_far_too_wide_are_moved_apart():
    """About 80 of 16,000 draws of a flow 20 times too wide are in the posterior. Chosen
    in proportion to their weights, 690 of 5,000 samples would differ, and their spread
    would be 0.13 too small (four seeds). Moved samples should be as good as half as many
    independent ones: standard errors of 0.02 and 0.014, within five of them."""
    torch.manual_seed(0)
    posterior = make_posterior(width=20.0, shift=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = posterior.sample_batched((1000,), X[:5], **QUIET)
    z = torch.cat([standardised(samples[:, i], X[i : i + 1]) for i in range(5)])
    assert len(z.unique(dim=0)) > 0.9 * len(z)
    assert z.mean(0).abs().max() < 5 * 0.02
    assert (z.std(0) - 1).abs().max() < 5 * 0.014


@pytest.mark.parametrize(("width", "shift"), [(20.0, 0.0), (1.0, 4.0)])
def test_samples_fill_all_dimensions_however_few_draws_have_weight(width, shift):
    """In ten dimensions one or two draws would be chosen again and again. 1,000 samples
    should be as good as 250 independent ones: standard errors of 0.064 and 0.045. Ten
    means and deviations within four of them fail by chance for one seed in 800."""
    torch.manual_seed(0)
    task, x = ConjugateGaussian(dim=10), torch.zeros(1, 10)
    posterior = EnergyPosterior(task.pair(width, shift), task.prior)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = posterior.sample((1000,), x=x, **QUIET)
    z = samples / math.sqrt(task.posterior(x)[1])
    assert len(z.unique(dim=0)) > 900
    assert z.mean(0).abs().max() < 4 * 0.064
    assert (z.std(0) - 1).abs().max() < 4 * 0.045


def test_no_sample_comes_twice():
    torch.manual_seed(0)
    posterior = make_posterior(0.6, 0.0)
    assert len(posterior.sample((500,), x=X[:1], **QUIET).unique(dim=0)) == 500


@pytest.mark.parametrize("size", [60, 1000, 100_000])
def test_no_draw_is_larger_than_asked_for(monkeypatch, size):
    posterior = make_posterior()
    drawn = []
    given = posterior.pair.flow.given

    def watched(condition):
        conditional = given(condition)
        rsample = conditional.rsample_and_log_prob

        def rsample_and_log_prob(num):
            drawn.append(num * len(condition))
            return rsample(num)

        conditional.rsample_and_log_prob = rsample_and_log_prob
        return conditional

    monkeypatch.setattr(posterior.pair.flow, "given", watched)
    posterior.sample_batched((100,), X[:30], max_sampling_batch_size=size, **QUIET)
    assert max(drawn) <= size
    with pytest.raises(ValueError, match=r"`max_sampling_batch_size` .* got 0"):
        posterior.sample_batched((5,), X, max_sampling_batch_size=0)


@pytest.mark.parametrize("n", [1, 5])
def test_log_prob_is_the_exact_posterior_given_one_or_several_observations(n):
    """The flow is 1.3 times too wide: log Z has a standard error below 0.01 at 10,000
    draws, below 0.03 after tempering; within five."""
    torch.manual_seed(0)
    mean, variance = TASK.posterior(X[:n])
    exact = MultivariateNormal(mean, variance * torch.eye(2))
    theta = exact.sample((20,))
    got = make_posterior().log_prob(theta, x=X[:n])
    atol = 0.05 if n == 1 else 0.15
    torch.testing.assert_close(got, exact.log_prob(theta), atol=atol, rtol=0)
    assert (got - exact.log_prob(theta)).std() < 1e-3


def test_log_prob_batched_is_log_prob_for_each():
    torch.manual_seed(0)
    posterior = make_posterior(max_sampling_batch_size=7)
    theta = torch.randn(2, 5, 3, 2)
    few = {"num_normalizer_samples": 1000}
    got = posterior.log_prob_batched(theta, X[:3], **few)
    assert got.shape == (2, 5, 3)
    for i in range(3):  # log Z is remembered, so that they are equal
        want = posterior.log_prob(theta[:, :, i].flatten(0, 1), x=X[i], **few)
        torch.testing.assert_close(got[:, :, i].flatten(), want)
    assert posterior.log_prob_batched(theta[0, 0], X[:3], **few).shape == (3,)
    with pytest.raises(ValueError, match=r"`theta` of shape \(\*sample_shape, 4, D\)"):
        posterior.log_prob_batched(theta, X[:4])


def test_log_z_of_one_x_is_estimated_once(monkeypatch):
    posterior, drawn = make_posterior(), []
    weights = posterior.importance_weights
    monkeypatch.setattr(
        posterior,
        "importance_weights",
        lambda x, *rest: drawn.append(len(x)) or weights(x, *rest),
    )
    log_z, _ = posterior.log_evidence_ratio(X[[0, 1, 0, 0]], num_samples=100)
    assert drawn == [2]
    assert log_z[0] == log_z[2] == log_z[3] != log_z[1]


def test_no_observation_is_refused():
    posterior = make_posterior()
    for call in (posterior.sample, posterior.sample_batched):
        with pytest.raises(ValueError, match="at least one observation `x`, got none"):
            call((3,), x=torch.zeros(0, 2), **QUIET)
    with pytest.raises(ValueError, match="at least one observation `x`, got none"):
        posterior.log_prob_batched(torch.zeros(3, 0, 2), torch.zeros(0, 2))


def test_log_z_is_remembered_for_each_x_and_improved_on_request(monkeypatch):
    posterior = make_posterior()
    first, _ = posterior.log_evidence_ratio(X[:3], num_samples=500)
    again, se = posterior.log_evidence_ratio(X[[2, 0]], num_samples=500)
    assert torch.equal(again, first[[2, 0]])
    better, smaller = posterior.log_evidence_ratio(X[[2, 0]], num_samples=50_000)
    assert (smaller < se / 5).all()
    joint, _ = posterior.log_evidence_ratio(X[:3], 500, x_is_iid=True)
    assert joint.shape == (1,)
    assert torch.equal(posterior.log_evidence_ratio(X[:3], 500)[0][2:], better[:1])
    monkeypatch.setattr("sbi_jeffreys.posteriors.evidence_cache.MAX_CACHED", 2)
    posterior.log_evidence_ratio(X[:10], num_samples=100)
    assert len(posterior._evidence) == 2


def test_arrays_and_other_numbers_are_taken_but_no_nan():
    posterior = make_posterior()
    x = X[:2].double().numpy()
    assert posterior.sample_batched((3,), x, **QUIET).shape == (3, 2, 2)
    assert posterior.log_prob(THETA[:3].double(), x=x[0]).dtype == torch.float32
    assert posterior.log_prob_batched(THETA[:2].double(), x).shape == (2,)
    x[0, 0] = math.nan
    for call in (
        lambda: posterior.sample_batched((3,), x, **QUIET),
        lambda: posterior.agreement(x),
    ):
        with pytest.raises(ValueError, match="NaN"):
            call()


def test_gradients_of_the_density():
    posterior = make_posterior()
    theta = THETA[:3].clone().requires_grad_()
    posterior.log_prob(theta, x=X[:1], track_gradients=True).sum().backward()
    mean, variance = TASK.posterior(X[:1])
    torch.testing.assert_close(theta.grad, (mean - THETA[:3]) / variance)


def test_importance_weights_estimate_expectations():
    """E θ given each of 50 observations, by 5,000 draws: within five standard errors."""
    torch.manual_seed(0)
    weights = make_posterior().importance_weights(X[:50], num_samples=5000)
    torch.testing.assert_close(weights.log_weights.logsumexp(0), torch.zeros(50))
    means = (weights.log_weights.exp().unsqueeze(-1) * weights.theta).sum(0)
    _, variance = TASK.posterior(X[:1])
    exact = variance * X[:50] / TASK.variance
    error = (means - exact) / (variance / weights.ess).sqrt().unsqueeze(-1)
    assert error.abs().max() < 5
    together = make_posterior().importance_weights(X[:4], 2000, x_is_iid=True)
    assert together.theta.shape == (2000, 1, 2)
    assert together.log_z.shape == together.pareto_k.shape == (1,)
    with pytest.raises(ValueError, match="`num_samples` to be at least 4, got 3"):
        make_posterior().importance_weights(X[:1], 3)


def test_nothing_is_outside_of_the_prior():
    box = BoxUniform(-0.5 * torch.ones(2), 0.5 * torch.ones(2))
    posterior = make_posterior(2.0, prior=box).set_default_x(torch.zeros(2))
    samples = posterior.sample((2000,), **QUIET)
    assert samples.abs().max() <= 0.5
    several = posterior.sample((2000,), x=torch.zeros(3, 2), **QUIET)
    assert several.abs().max() <= 0.5
    theta = torch.tensor([[0.0, 0.4], [0.0, 0.6]])
    assert posterior.log_prob(theta).isneginf().tolist() == [False, True]
    batched = posterior.log_prob_batched(theta.unsqueeze(1), torch.zeros(1, 2))
    assert batched.isneginf()[:, 0].tolist() == [False, True]
    far = BoxUniform(50 * torch.ones(2), 51 * torch.ones(2))
    with pytest.raises(RuntimeError, match="inside the prior's support"):
        make_posterior(prior=far).sample((5,), x=X[:1], **QUIET)


def test_samples_of_a_narrow_flow_are_corrected_without_a_warning():
    """Half of 20 times 500 draws as independent: means and deviations within five SE."""
    torch.manual_seed(0)
    _, variance = TASK.posterior(X[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = make_posterior(0.15, 0.0).sample_batched((500,), X[:20], **QUIET)
    means = torch.stack([TASK.posterior(x.unsqueeze(0))[0] for x in X[:20]])
    z = ((samples - means) / variance**0.5).flatten(0, 1)
    assert z.mean(0).abs().max() < 5 / math.sqrt(5000)
    assert (z.std(0) - 1).abs().max() < 5 / math.sqrt(2 * 5000)


# -------------------------------------------------------------- what sbi does with it


def test_it_is_pickled_moved_and_given_a_default_x():
    posterior = make_posterior().set_default_x(X[:1])
    value = posterior.log_prob(THETA[:3])
    copy = pickle.loads(pickle.dumps(posterior))
    copy.to("cpu")
    assert torch.equal(copy.default_x, X[:1])
    torch.testing.assert_close(copy.log_prob(THETA[:3]), value)
    assert copy.sample((4,), **QUIET).shape == (4, 2)
    with pytest.raises(ValueError, match="default has not been set"):
        make_posterior().sample((4,))


@pytest.mark.parametrize("n", [1, 6])
def test_map_is_the_mode(n):
    torch.manual_seed(0)
    posterior = make_posterior().set_default_x(X[:n])
    mode = posterior.map(num_iter=200, num_to_optimize=5, num_init_samples=50)
    mean, variance = TASK.posterior(X[:n])
    torch.testing.assert_close(mode[0], mean, atol=0.05 * math.sqrt(variance), rtol=0)


def test_sbis_diagnostics_run_on_it():
    """With an exact posterior: KS p-values of SBC below 1e-4 in one run of 5,000."""
    torch.manual_seed(0)
    posterior = make_posterior(1.2)
    from sbi.diagnostics.sbc import check_uniformity_frequentist

    ranks, _ = run_sbc(THETA, X, posterior, 200, show_progress_bar=False)
    assert (check_uniformity_frequentist(ranks, 200) > 1e-4).all()
    ecp, alpha = run_tarp(THETA, X, posterior, None, 200, show_progress_bar=False)
    assert (ecp - alpha).abs().max() < 0.2
    own = posterior.sample_batched((1,), X, **QUIET)[0]
    test = LC2ST(THETA, X, own, num_folds=1, num_trials_null=2)
    test.train_under_null_hypothesis(verbosity=0)
    test.train_on_observed_data(verbosity=0)
    samples = posterior.sample((200,), x=X[:1], **QUIET)
    assert 0 <= test.p_value(samples, X[0]) <= 1
    figure, _ = pairplot(samples)
    assert figure.axes


MCMC = {"warmup_steps": 30, "num_chains": 20}


@pytest.mark.parametrize(
    "parameters",
    [
        MCMCPosteriorParameters(**MCMC),
        MCMCPosteriorParameters(init_strategy="proposal", **MCMC),
        MCMCPosteriorParameters(method="nuts_pyro", warmup_steps=100, num_chains=1),
        RejectionPosteriorParameters(),
        ImportanceSamplingPosteriorParameters(),
        VIPosteriorParameters(q="gaussian"),
    ],
    ids=lambda p: type(p).__name__ + getattr(p, "method", ""),
)
@pytest.mark.parametrize("n", [1, 5])
def test_sbis_samplers_sample_the_energy(parameters, n):
    """Means within 0.3 and spreads within 0.25 posterior standard deviations: five errors
    of 400 samples, if a fourth of them is effective. NUTS adapts its step in its warm-up.
    After 30 steps one chain in three hardly moves. After 100 steps all of twelve moved:
    for seeds 0 to 5 the worst mean was 0.13 off, and the worst spread 0.09."""
    if getattr(parameters, "method", "") == "nuts_pyro":
        pytest.importorskip("pyro")
    torch.manual_seed(0)
    posterior = sampled_by_sbi(TASK.pair(1.5), TASK.prior, parameters, "cpu")
    posterior.set_default_x(X[:n])
    if isinstance(parameters, VIPosteriorParameters):
        posterior.train(
            learning_rate=0.02,
            max_num_iters=500,
            show_progress_bar=False,
            quality_control=False,
        )
    z = standardised(posterior.sample((400,), **QUIET), X[:n])
    assert z.mean(0).abs().max() < 0.3
    assert (z.std(0) - 1).abs().max() < 0.25


def test_chains_of_each_observation_start_from_its_own_flow():
    """Without a warm-up, chains are still where they started."""
    torch.manual_seed(0)
    x = torch.tensor([[-8.0, -8.0], [8.0, 8.0]])
    parameters = MCMCPosteriorParameters(
        warmup_steps=0, num_chains=5, init_strategy="proposal"
    )
    posterior = sampled_by_sbi(TASK.pair(), TASK.prior, parameters, "cpu")
    samples = posterior.sample_batched((5,), x, **QUIET)
    exact = x / (1 + TASK.variance)
    assert ((samples - exact).abs() < 5 * math.sqrt(1 / 3)).all()
    posterior.to("cpu")
    assert posterior.sample((10,), x=x[:1], **QUIET).shape == (10, 2)


def test_the_proposal_is_the_flow_or_a_mixture_of_it():
    torch.manual_seed(0)
    posterior = make_posterior(1.0, 0.0)
    potential = posterior.potential_fn
    potential.set_x(X[:3])
    proposal = FlowProposal(TASK.flow(), potential)
    scale = math.sqrt(TASK.posterior(X[:1])[1])
    parts = torch.stack(
        [
            torch.distributions.Normal(x / (1 + TASK.variance), scale)
            .log_prob(THETA[:9])
            .sum(-1)
            for x in X[:3]
        ]
    )
    want = parts.logsumexp(0) - math.log(3)
    torch.testing.assert_close(proposal.log_prob(THETA[:9]), want)
    samples = proposal.sample((30_000,))
    expected = X[:3].mean(0) / (1 + TASK.variance)
    assert (samples.mean(0) - expected).abs().max() < 0.04
    assert proposal.sample((2, 2)).shape == (2, 2, 2)
    assert proposal.sample().shape == (2,)


# ------------------------------------------------------------------- from a trainer


@pytest.fixture(scope="module")
def trainer():
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    theta = prior.sample((400,))
    x = theta + 0.3 * torch.randn(400, 2)
    trainer = JNPE(prior, show_progress_bars=False)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        fit_in_few_steps(patch)
        trainer.append_simulations(theta, x).train(max_num_epochs=20)
    return trainer


@pytest.fixture
def few_particles(monkeypatch):
    """Temper few particles, where it does not matter how good samples are."""
    monkeypatch.setattr(several_observations, "MIN_PARTICLES", 100)


@pytest.mark.parametrize("edges", [(0.0, 1.0), (torch.zeros(1), torch.ones(1))])
def test_several_observations_of_a_single_parameter(edges, few_particles):
    """Whatever shape the prior's samples and log densities have, and with the pool."""
    torch.manual_seed(0)
    theta = torch.rand(200, 1)
    x = theta + 0.1 * torch.randn(200, 1)
    trainer = JNPE(Uniform(*edges), show_progress_bars=False)
    with pytest.warns(UserWarning, match="max_num_epochs") as record:
        trainer.append_simulations(theta, x).train(max_num_epochs=1)
    assert not any("could not be pooled" in str(warning.message) for warning in record)
    posterior = trainer.build_posterior(sample_with="energy")
    assert posterior.sample((50,), x=x[:3], show_progress_bars=False).shape == (50, 1)
    assert posterior.log_prob(theta[:7], x=x[:3]).shape == (7,)


def test_fewer_effective_draws_than_samples_may_be_enough(trainer, monkeypatch):
    monkeypatch.setattr(corrected_sampler, "ESS_PER_SAMPLE", 0.1)
    monkeypatch.setattr(corrected_sampler, "MAX_DISPLACED", 1.0)
    posterior = trainer.build_posterior(sample_with="energy")
    samples = posterior.sample((2000,), x=torch.zeros(1, 2), show_progress_bars=False)
    assert len(samples.unique(dim=0)) == 2000


def test_the_trainer_builds_both_posteriors(trainer):
    flow = trainer.build_posterior()
    energy = trainer.build_posterior(sample_with="energy")
    assert (type(flow), type(energy)) == (FlowPosterior, EnergyPosterior)
    assert flow.num_simulations == energy.num_simulations == 400
    x = torch.tensor([[0.2, 0.1], [30.0, 30.0]])
    for report in (flow.agreement(x), energy.agreement(x)):
        assert report.verdicts[0].startswith("flow and energy ")
        assert report.verdicts[1].startswith("x is unlike the simulations")
    theta = energy.sample((5,), x=x[:1], **QUIET)
    got = energy.potential(theta, x=x[:1])
    torch.testing.assert_close(got, trainer.energy(theta.unsqueeze(1), x[:1])[:, 0])


@pytest.mark.parametrize("sample_with", ["direct", "energy"])
def test_sampling_given_an_x_unlike_the_simulations_warns_once(trainer, sample_with):
    posterior = trainer.build_posterior(sample_with=sample_with)
    usual, unusual = torch.tensor([[0.2, 0.1]]), torch.tensor([[30.0, 30.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior.sample((5,), x=usual, **QUIET)
    with pytest.warns(UserWarning, match=r"x is unlike the simulations \(p = 0.00"):
        posterior.sample((5,), x=unusual, **QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="x is unlike")
        posterior.sample((5,), x=unusual, **QUIET)


def test_one_of_several_observations_unlike_the_simulations_warns(trainer, few_particles):
    posterior = trainer.build_posterior(sample_with="energy")
    x = torch.tensor([[0.2, 0.1], [5.0, 5.0]])
    with pytest.warns(UserWarning, match="x is unlike the simulations"):
        posterior.sample((5,), x=x, **QUIET)


def test_a_posterior_does_not_change_when_training_goes_on(trainer):
    posterior = trainer.build_posterior(sample_with="energy")
    shared = posterior.pair
    assert shared.energy.embedding_net is shared.flow.embedding_net
    before = posterior.potential(torch.zeros(1, 2), x=torch.zeros(2))
    parameters = list(trainer.energy.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1)
    torch.testing.assert_close(
        posterior.potential(torch.zeros(1, 2), x=torch.zeros(2)), before
    )
    with torch.no_grad():
        for parameter in parameters:
            parameter.sub_(0.1)


def test_a_flow_of_another_training_does_not_change_the_energy(trainer):
    other = trainer.build_posterior().posterior_estimator
    with torch.no_grad():
        for buffer in other.embedding_net.buffers():
            buffer.copy_(2 * buffer)
    posterior = trainer.build_posterior(other, sample_with="energy")
    theta, x = torch.zeros(1, 2), torch.ones(1, 2)
    got = posterior.potential(theta, x=x)
    torch.testing.assert_close(got, trainer.energy(theta.unsqueeze(1), x)[:, 0])


def test_parameters_choose_how_the_energy_is_sampled(trainer):
    posterior = trainer.build_posterior(
        sample_with="energy",
        posterior_parameters=EnergyPosteriorParameters(max_sampling_batch_size=50),
    )
    assert posterior.max_sampling_batch_size == 50
    chains = trainer.build_posterior(
        sample_with="energy",
        posterior_parameters=MCMCPosteriorParameters(
            num_chains=4, warmup_steps=5, init_strategy="proposal"
        ),
    )
    x = torch.zeros(3, 2)
    samples = chains.sample((40,), x=x, **QUIET)
    assert samples.abs().max() < 2
    direct = trainer.build_posterior(posterior_parameters=EnergyPosteriorParameters())
    assert isinstance(direct, EnergyPosterior)
    with pytest.raises(ValueError, match="got mcmc_parameters"):
        trainer.build_posterior(sample_with="energy", mcmc_parameters={"thin": 2})
    with pytest.raises(TypeError, match="got a DirectPosteriorParameters"):
        trainer.build_posterior(
            sample_with="energy", posterior_parameters=DirectPosteriorParameters()
        )


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"`max_sampling_batch_size` .* got 0"):
        EnergyPosteriorParameters(max_sampling_batch_size=0)


def test_what_is_missing_is_said(trainer):
    flow = trainer.build_posterior()
    with pytest.raises(ValueError, match="sample_with='energy'"):
        flow.sample((3,), x=torch.zeros(2, 2))
    with pytest.raises(TypeError, match="a flow that `train` returned"):
        trainer.build_posterior(flow.posterior_estimator.net, sample_with="energy")
    untrained = JNPE(trainer._prior, show_progress_bars=False)
    untrained.append_simulations(torch.zeros(9, 2), torch.randn(9, 2))
    with pytest.raises(RuntimeError, match="There is no energy yet"):
        untrained.build_posterior(flow.posterior_estimator, sample_with="energy")
    alone = untrained.build_posterior(flow.posterior_estimator)
    with pytest.raises(RuntimeError, match="no energy to compare with"):
        alone.agreement(torch.zeros(2))
    assert isinstance(flow.posterior_estimator, ConditionalFlow)


@pytest.mark.very_slow
def test_a_poorly_trained_model_is_told_from_a_well_trained_one():
    """Ten parameters, 1,000 simulations: after 3 epochs, flow and energy were found to
    agree at none of 300 observations, after training at all that were not unusual."""
    from benchmarks.tasks.sbibm import TASKS

    task = TASKS["gaussian_linear_uniform"]
    theta, x = task.simulate(1000, 0)
    _, x_test = task.simulate(200, 77)
    shares = []
    for epochs in (3, 80):
        torch.manual_seed(1)
        trainer = JNPE(task.prior, show_progress_bars=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.append_simulations(theta, x).train(max_num_epochs=epochs)
            verdicts = trainer.build_posterior().agreement(x_test).verdicts
        shares.append(sum("energy agree" in verdict for verdict in verdicts) / 200)
    assert shares[0] < 0.1
    assert shares[1] > 0.9


@pytest.mark.gpu
def test_all_of_it_runs_on_a_gpu():
    posterior = make_posterior(0.5)
    posterior.to("cuda")
    assert posterior.sample_batched((300,), X[:20], **QUIET).is_cuda
    assert posterior.log_evidence_ratio(X[:20])[0].is_cuda
    assert posterior.sample((300,), x=X[:3], **QUIET).is_cuda
    assert posterior.log_prob(THETA[:5], x=X[:1]).is_cuda
    assert posterior.log_prob_batched(THETA[:5].unsqueeze(0), X[:5]).is_cuda
    assert len(posterior.agreement(X[:3]).verdicts) == 3
