"""The flow's posterior, which needs no rejection, against sbi's for the same flow."""

import pickle
from math import ceil

import pytest
import torch
from sbi.diagnostics import run_sbc
from sbi.inference.posteriors import DirectPosterior
from sbi.utils import BoxUniform, RestrictedPrior
from scipy.stats import ks_2samp
from torch.distributions import Gamma, Independent, MultivariateNormal

from sbi_jeffreys import JNPE
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.spline_flow import build_spline_flow
from sbi_jeffreys.models.transforms import ConditionalAffine
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from sbi_jeffreys.preprocessing.support import support_of

BOX = BoxUniform(-torch.ones(2), torch.ones(2))
X = torch.tensor([[0.0, 0.5], [1.5, -2.0], [0.3, 0.1]])


def make_flow(prior=BOX):
    """A flow that depends on x, without training."""
    torch.manual_seed(0)
    theta = prior.sample((100,))
    support = support_of(prior, theta)
    flow = build_spline_flow(theta, torch.randn(100, 2), hidden_features=8)
    for module in flow.modules():
        if isinstance(module, ConditionalAffine):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    return ConditionalFlow(flow, support).eval()


def make_posteriors(prior=BOX):
    flow = make_flow(prior)
    return FlowPosterior(flow, prior), DirectPosterior(flow, prior)


def draw(posterior, *arguments, seed=0, method="sample_batched", **options):
    torch.manual_seed(seed)
    sample = getattr(posterior, method)
    return sample(*arguments, show_progress_bars=False, **options)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_samples_are_those_of_sbi_in_the_shape_that_is_asked_for(shape):
    ours, sbis = make_posteriors()
    for options in (
        {"x": X[:1]},
        {"x": X[0]},
        {"x": X[:1].double().numpy()},
        {"x": X[:1], "reject_outside_prior": False},
    ):
        got = draw(ours, shape, method="sample", **options)
        want = draw(sbis, shape, method="sample", **options)
        assert torch.equal(got, want.reshape(*shape, 2))  # of which sbi makes one axis
    got = draw(ours, shape, X)
    assert torch.equal(got, draw(sbis, shape, X).reshape(*shape, 3, 2))
    assert torch.equal(got, draw(ours, shape, X.double().numpy()))
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("size", "num"),
    [(size, num) for size in (7, 40, 100, 10_000) for num in (1, 30, 101)]
    + [(1, 1), (1, 30)],
)
def test_no_draw_is_larger_than_asked_for(monkeypatch, size, num):
    posterior, _ = make_posteriors()
    flow = posterior.posterior_estimator
    sizes = []
    sample = flow.sample

    def watched(sample_shape, condition):
        sizes.append(sample_shape.numel() * len(condition))
        return sample(sample_shape, condition)

    monkeypatch.setattr(flow, "sample", watched)
    samples = draw(posterior, (num,), X, max_sampling_batch_size=size)
    assert max(sizes) <= size
    assert sum(sizes) == 3 * num == len(samples) * 3
    assert len(sizes) <= 2 * ceil(3 * num / size) + 3
    sizes.clear()
    draw(posterior, (num,), method="sample", x=X[:1], max_sampling_batch_size=size)
    assert max(sizes) <= size
    posterior.max_sampling_batch_size = 2
    sizes.clear()
    draw(posterior, (num,), X, max_sampling_batch_size=None)
    assert max(sizes) <= 2


def test_every_observation_gets_its_own_samples_in_any_chunks():
    """Kolmogorov-Smirnov tests, 12 of them at 1e-5: one run in 8,000 fails by chance."""
    ours, sbis = make_posteriors()
    want = draw(sbis, (4000,), X, seed=1)
    for size in (100, 5000):
        got = draw(ours, (4000,), X, seed=2, max_sampling_batch_size=size)
        for observation in range(3):
            for axis in range(2):
                some, others = (s[:, observation, axis].numpy() for s in (got, want))
                assert ks_2samp(some, others).pvalue > 1e-5
    assert ks_2samp(got[:, 0, 0].numpy(), got[:, 1, 0].numpy()).pvalue < 1e-5


def test_next_to_a_bound_the_density_is_that_of_a_thousandth_inside():
    ours, sbis = make_posteriors()
    edge = torch.tensor([[1.0, 0.2], [1.0 - 1e-9, 0.2], [0.9985, 0.2], [0.998, 0.2]])
    want = sbis.log_prob(edge[3:], x=X[:1])
    torch.testing.assert_close(
        ours.log_prob(edge, x=X[:1]), want.expand(4), atol=1e-4, rtol=0
    )
    both = ours.log_prob_batched(edge[:, None].expand(-1, 2, -1), X[:2])
    torch.testing.assert_close(both[:, 0], want.expand(4), atol=1e-4, rtol=0)
    ours.set_default_x(X[:1])
    for posterior in (ours, pickle.loads(pickle.dumps(ours))):
        got = posterior.potential(edge, X[:1])
        torch.testing.assert_close(got, want.expand(4), atol=1e-4, rtol=0)
    inside = torch.tensor([[0.997, -0.5], [-0.3, 0.9]])
    assert torch.equal(ours.log_prob(inside, x=X[:1]), sbis.log_prob(inside, x=X[:1]))
    outside = ours.log_prob(torch.tensor([[1.001, 0.2]]), x=X[:1])
    assert outside.isneginf().all()


def test_the_same_seed_gives_the_same_samples():
    posterior, _ = make_posteriors()
    chunks = {"max_sampling_batch_size": 10}
    some, same, others = (draw(posterior, (30,), X, seed=s, **chunks) for s in (3, 3, 4))
    assert torch.equal(some, same)
    assert not torch.equal(some, others)


def test_nothing_is_drawn_of_nothing():
    posterior, _ = make_posteriors()
    assert draw(posterior, (0,), X).shape == (0, 3, 2)
    assert draw(posterior, (4,), X[:0]).shape == (4, 0, 2)


def test_bad_arguments_are_refused():
    posterior, _ = make_posteriors()
    with pytest.raises(ValueError, match="sample_batched"):
        posterior.sample((2,), x=X)
    with pytest.raises(ValueError, match="log_prob_batched"):
        posterior.log_prob(torch.zeros(3, 2), x=X)
    with pytest.raises(ValueError, match="default has not been set"):
        posterior.sample((2,))
    with pytest.raises(ValueError, match=r"`max_sampling_batch_size` .* got 0"):
        posterior.sample_batched((2,), X, max_sampling_batch_size=0)
    with pytest.raises(RuntimeError, match="Expected trailing dimensions"):
        posterior.sample_batched((2,), X[:, :1])


def test_densities_are_those_of_sbi_without_its_correction():
    ours, sbis = make_posteriors()
    samples = draw(ours, (9,), x=X[:1], method="sample").clamp(-0.99, 0.99)
    theta = torch.cat([samples, torch.full((1, 2), 3.0)])
    got = ours.log_prob(theta, x=X[:1], leakage_correction_params={"force_update": True})
    assert torch.equal(got, sbis.log_prob(theta, x=X[:1], norm_posterior=False))
    assert got[-1] == -torch.inf
    assert torch.equal(got, ours.log_prob(theta.double().numpy(), x=X[:1].numpy()))
    batched = theta[:, None].expand(-1, 3, -1)
    got = ours.log_prob_batched(batched, X)
    assert torch.equal(got, sbis.log_prob_batched(batched, X, norm_posterior=False))
    assert torch.equal(ours.leakage_correction(X), torch.ones(3))


def test_the_rest_of_sbis_posterior_works():
    posterior, _ = make_posteriors()
    posterior = pickle.loads(pickle.dumps(posterior)).set_default_x(X[:1])
    posterior.to("cpu")
    assert type(posterior) is FlowPosterior
    assert draw(posterior, (4,), method="sample").shape == (4, 2)
    assert posterior.map(num_iter=2, num_to_optimize=2, num_init_samples=4).shape == (
        1,
        2,
    )
    ranks, _ = run_sbc(
        BOX.sample((4,)), X[[0, 1, 2, 0]], posterior, 5, show_progress_bar=False
    )
    assert ranks.shape == (4, 2)


@pytest.mark.parametrize("several", [True, False])
def test_a_limit_on_time_is_kept_by_sbi(several):
    posterior, _ = make_posteriors()
    options = {"x": X} if several else {"x": X[:1], "method": "sample"}
    late = {"max_sampling_time": -1.0, **options}
    with pytest.raises(RuntimeError, match="max_sampling_time"):
        draw(posterior, (5,), **late)
    assert len(draw(posterior, (5,), **{**late, "max_sampling_time": 100.0})) == 5


def test_only_a_flow_inside_of_the_prior_needs_no_rejection():
    gamma = Independent(Gamma(torch.ones(2), torch.ones(2)), 1)
    normal = MultivariateNormal(torch.zeros(2), torch.eye(2))
    half = BoxUniform(-torch.ones(2), torch.tensor([1.0, 0.5]))
    restricted = RestrictedPrior(BOX, lambda theta: theta[:, 0] > 0, "rejection")
    flow = make_flow()
    for estimator, prior, expected in (
        (flow, BOX, True),
        (flow, BoxUniform(-2 * torch.ones(2), torch.ones(2)), True),
        (flow, half, False),
        (flow, restricted, False),
        (make_flow(gamma), gamma, True),
        (make_flow(gamma), normal, True),
        (make_flow(normal), normal, True),
        (make_flow(normal), gamma, False),
    ):
        assert estimator.never_leaves(prior) == expected
    flow.support.is_exact = False
    assert not flow.never_leaves(BOX)


@pytest.mark.parametrize("prior", [BOX, None])
def test_the_trainer_builds_it_whatever_the_prior(prior):
    trainer = JNPE(prior, show_progress_bars=False)
    theta = BOX.sample((50,))
    trainer.append_simulations(theta, theta)
    flow = make_flow(prior or MultivariateNormal(torch.zeros(2), torch.eye(2)))
    assert type(trainer.build_posterior(flow)) is FlowPosterior
    wide = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    assert type(trainer.build_posterior(flow, prior=wide)) is FlowPosterior
    accept = RestrictedPrior(BOX, lambda theta: theta[:, 0] > 0, "rejection")
    posterior = trainer.build_posterior(flow, prior=accept)
    assert type(posterior) is FlowPosterior
    assert (draw(posterior, (500,), X)[..., 0] > 0).all()
    assert type(trainer.build_posterior(flow.net)) is DirectPosterior


def test_moves_with_a_prior_that_has_no_method_for_it():
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    posterior = FlowPosterior(make_flow(prior), prior).set_default_x(X[:1])
    before = posterior.log_prob(torch.zeros(1, 2))
    posterior.to("cpu")
    torch.testing.assert_close(posterior.log_prob(torch.zeros(1, 2)), before)


@pytest.mark.gpu
def test_samples_stay_on_the_gpu_where_observations_do_not():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    posterior = FlowPosterior(make_flow(prior), prior)
    posterior.to("cuda")
    assert draw(posterior, (4,), X, max_sampling_batch_size=5).is_cuda


def test_no_more_samples_are_drawn_at_a_time_than_the_posterior_was_told(monkeypatch):
    posterior = FlowPosterior(make_flow(), BOX, max_sampling_batch_size=50)
    sizes = []
    sample = ConditionalFlow.sample

    def watched(self, sample_shape, condition):
        sizes.append(sample_shape.numel() * len(condition))
        return sample(self, sample_shape, condition)

    monkeypatch.setattr(ConditionalFlow, "sample", watched)
    draw(posterior, (120,), x=X[:1], method="sample")
    draw(posterior, (120,), X)
    assert max(sizes) <= 50
    assert sum(sizes) == 120 + 120 * len(X)
