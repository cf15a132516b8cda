"""What parameters were drawn from: each kind of proposal, and what is refused."""

import math
import warnings

import pytest
import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.utils import BoxUniform, RestrictedPrior
from torch.distributions import MultivariateNormal

from sbi_jeffreys import FittedProposal
from sbi_jeffreys.proposals.forgotten import FALSE_ALARMS, prior_p_value
from sbi_jeffreys.proposals.mixture import ProposalMixture
from sbi_jeffreys.proposals.source import Source, describe, mixture_of
from tests.small_trainings import BOX

PRIOR = MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))
NEAR = MultivariateNormal(torch.ones(2), 0.25 * torch.eye(2))


class ByHand:
    """Something with `sample` and `log_prob`, that is no distribution of torch."""

    def __init__(self, offset=0.0):
        self.offset = offset

    def sample(self, shape):
        return NEAR.sample(shape)

    def log_prob(self, theta):
        return NEAR.log_prob(theta).numpy() + self.offset


@pytest.fixture
def theta():
    torch.manual_seed(0)
    return NEAR.sample((400,))


def test_the_prior_needs_no_density(theta):
    torch.manual_seed(0)
    from_prior = PRIOR.sample((100,))
    assert describe(None, PRIOR, from_prior) == Source()
    assert describe(PRIOR, PRIOR, theta) == Source()


def test_a_distribution_is_used_as_it_is(theta):
    source = describe(NEAR, PRIOR, theta)
    assert source.density is NEAR
    assert source.weights is None


@pytest.mark.parametrize("kind", ["object", "log densities", "an array of them"])
def test_another_density_is_replaced_and_its_simulations_are_weighted(kind, theta):
    """Weighted by w, the simulations are a sample of the fitted density: their mean is
    that of the density, within five standard errors."""
    log_prob = NEAR.log_prob(theta)
    proposal = {
        "object": ByHand(),
        "log densities": log_prob,
        "an array of them": log_prob.double().numpy(),
    }[kind]
    source = describe(proposal, PRIOR, theta)
    assert isinstance(source.density, FittedProposal)
    ratios = (source.density.log_prob(theta) - NEAR.log_prob(theta)).exp()
    assert torch.allclose(source.weights, ratios / ratios.mean(), rtol=1e-4)
    assert source.weights.mean() == pytest.approx(1.0)
    mean = (source.weights.unsqueeze(-1) * theta).mean(0)
    wanted = source.density.sample((20_000,)).mean(0)
    assert torch.allclose(mean, wanted, atol=5 * 0.5 / 400**0.5)


def test_a_fitted_proposal_keeps_its_observation(theta):
    x_o = torch.zeros(1, 3)
    fitted = FittedProposal.fit(theta, PRIOR, default_x=x_o)
    source = describe(fitted, PRIOR, theta)
    assert source.density is fitted
    assert source.default_x is x_o


@pytest.mark.parametrize("offset", [-3.0, 3.0])
def test_a_density_that_is_not_normalised_is_refused(offset, theta):
    with pytest.raises(ValueError, match=r"`proposal` to be the normalised density"):
        describe(ByHand(offset), PRIOR, theta)


def test_a_density_of_other_parameters_is_refused(theta):
    with pytest.raises(ValueError, match="come from elsewhere"):
        describe(NEAR, PRIOR, theta + 1.5)


def test_a_density_that_is_zero_at_parameters_is_refused(theta):
    box = BoxUniform(torch.ones(2), 2 * torch.ones(2))
    with pytest.raises(ValueError, match=r"zero or not finite at \d+ of 400"):
        describe(box, PRIOR, theta)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_log_densities_that_are_not_finite_are_refused(value, theta):
    log_prob = NEAR.log_prob(theta)
    log_prob[:3] = value
    with pytest.raises(ValueError, match="zero or not finite at 3 of 400"):
        describe(log_prob, PRIOR, theta)


@pytest.mark.parametrize("kind", ["direct", "energy", "sbi"])
def test_a_posterior_without_a_default_x_is_refused(kind, trained):
    proposal = (
        DirectPosterior(trained.flow, BOX)
        if kind == "sbi"
        else trained.build_posterior(sample_with=kind)
    )
    with pytest.raises(ValueError, match=r"`proposal` .* default .*`\.set_default_x\("):
        describe(proposal, BOX, BOX.sample((40,)))


def test_log_densities_of_another_number_are_refused(theta):
    with pytest.raises(ValueError, match=r"shape \(400,\), got \(3,\)"):
        describe(torch.zeros(3), PRIOR, theta)


def test_what_has_no_density_is_refused(theta):
    with pytest.raises(TypeError, match="got a str"):
        describe("prior", PRIOR, theta)


def test_a_proposal_needs_a_prior(theta):
    with pytest.raises(ValueError, match="Expected a `prior`"):
        describe(NEAR, None, theta)


def test_a_forgotten_proposal_is_noticed(theta):
    with pytest.warns(UserWarning, match=r"pass `proposal=`"):
        describe(None, PRIOR, theta)


def test_correlated_parameters_with_the_prior_s_marginals_are_noticed():
    torch.manual_seed(0)
    theta = PRIOR.sample((300,))
    theta[:, 1] = theta[:, 0]
    assert prior_p_value(theta, PRIOR) < FALSE_ALARMS


def test_a_sample_of_the_prior_is_rarely_taken_for_another():
    """P-values are at least those of a uniform: of 200, ten are below 0.01 with a
    probability below 1e-4 (binomial), and the smallest is not below 1e-6."""
    torch.manual_seed(1)
    p_values = [prior_p_value(PRIOR.sample((100,)), PRIOR) for _ in range(200)]
    assert sum(p < 0.01 for p in p_values) < 10
    assert min(p_values) > 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        describe(None, PRIOR, PRIOR.sample((200,)))


def test_the_mixture_counts_each_density_once():
    sources = [(Source(), 100), (Source(NEAR), 50), (Source(NEAR), 50), (Source(), 200)]
    mixture = mixture_of(sources, PRIOR)
    assert isinstance(mixture, ProposalMixture)
    assert mixture.parts == [NEAR, PRIOR]
    assert mixture.shares.tolist() == [0.25, 0.75]


def test_the_density_of_the_last_round_comes_last():
    other = MultivariateNormal(torch.zeros(2), torch.eye(2))
    sources = [
        (Source(), 10),
        (Source(NEAR), 10),
        (Source(other), 10),
        (Source(NEAR), 10),
    ]
    mixture = mixture_of(sources, PRIOR)
    assert mixture.latest is NEAR
    assert mixture.shares.tolist() == [0.25, 0.25, 0.5]


def test_few_parameters_of_a_distribution_are_taken():
    for seed in range(20):
        torch.manual_seed(seed)
        assert describe(NEAR, PRIOR, NEAR.sample((3,))).density is NEAR


def test_the_prior_alone_or_truncated_is_no_mixture(theta):
    restricted = RestrictedPrior(
        PRIOR, lambda theta: (theta > 0).all(-1), sample_with="rejection"
    )
    truncated = describe(restricted, PRIOR, theta.abs())
    assert truncated.is_truncated
    assert mixture_of([(Source(), 100), (truncated, 50)], PRIOR) is None
    mixed = mixture_of([(Source(), 100), (truncated, 50), (Source(NEAR), 50)], PRIOR)
    assert mixed.shares.tolist() == [0.5, 0.25, 0.25]
