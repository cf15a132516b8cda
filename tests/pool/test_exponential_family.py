"""The exponential family: exact where the simulator is one, and its parts by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal
from torch.nn.functional import softplus

from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.exponential_family import ExponentialFamily

pytestmark = pytest.mark.full_fits

DIM, NUM_SPIKES = 2, 20
PRIOR = MultivariateNormal(torch.zeros(DIM), torch.eye(DIM))
DESIGN = torch.randn(NUM_SPIKES, DIM, generator=torch.Generator().manual_seed(3))


def spikes(num, seed):
    """A logistic regression: parameters, and sufficient statistics of 20 spikes."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        theta = PRIOR.sample((num,))
        return theta, torch.bernoulli((theta @ DESIGN.T).sigmoid()) @ DESIGN


def log_likelihood(theta, statistics):
    """Up to a function of the statistics, shape `(sample, batch)`."""
    return (theta * statistics).sum(-1) - softplus(theta @ DESIGN.T).sum(-1)


def fit(theta, x, num_draws=16, seed=0):
    """Fit with draws of the prior, which is close enough to the posteriors here."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        draws = torch.cat([theta[None], PRIOR.sample((num_draws, len(theta)))])
        return ExponentialFamily.fit(
            Candidates.unweighted(draws, x, torch.zeros(draws.shape[:2]))
        )


def error(num, seed):
    """Root mean squared error of the log-ratio against θ = 0, over fresh pairs."""
    model = fit(*spikes(num, seed), seed=seed)
    theta, x = spikes(500, 1000 + seed)
    points = torch.stack([theta, torch.zeros_like(theta)])
    (r, zero), (exact, at_zero) = model(points, x), log_likelihood(points, x)
    return float((r - zero - exact + at_zero).square().mean().sqrt())


def test_converges_to_the_likelihood_at_the_parametric_rate():
    """Four times the simulations halve the error.

    The error varies by a quarter over seeds. The ratio of two means over four seeds then
    has a relative standard error of 0.18, and 0.5 is 2.8 of these."""
    few, many = (np.mean([error(num, seed) for seed in range(4)]) for num in (100, 400))
    assert few / many == pytest.approx(2.0, rel=0.5)


def test_units_of_the_features_do_not_count():
    """An embedding network may return features in any unit."""
    theta, x = spikes(200, 0)
    points = spikes(50, 1)[0]
    r = [fit(theta, scale * x)(points, scale * x[:50]) for scale in (1.0, 1e-3)]
    torch.testing.assert_close(*r, atol=0.05, rtol=0.01)


def test_z_is_about_one():
    """Estimates of log Z from few draws are biased: by -0.1 with 16 draws for each x."""
    theta, x = spikes(1000, 0)
    model = fit(theta, x, num_draws=64)
    draws = PRIOR.sample((4000, 1))
    _, fresh = spikes(200, 1)
    log_z = model(draws.expand(-1, 200, -1), fresh).logsumexp(0) - np.log(4000)
    assert float(log_z.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(log_z.std()) < 0.3


def test_by_hand():
    model = ExponentialFamily(2, 3).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    theta, s = torch.randn(4, 5, 2).double(), torch.randn(5, 3).double()
    eta = s @ model.natural.weight.T + model.natural.bias
    terms = (1 + (theta @ model.hidden.weight.T + model.hidden.bias).exp()).log()
    psi = (theta @ model.root.T).pow(2).sum(-1) + terms @ model.root_output.pow(2)
    want = torch.einsum("sbd,bd->sb", theta, eta) - psi - model.evidence(eta)
    torch.testing.assert_close(model(theta, s), want)


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 6), seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_is_concave_in_theta(dim, seed, share):
    torch.manual_seed(seed)
    model = ExponentialFamily(dim, 2).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    a, b = 3 * torch.randn(2, 1, 50, dim).double()
    s = torch.randn(50, 2).double()
    between = share * model(a, s) + (1 - share) * model(b, s)
    assert bool((model(share * a + (1 - share) * b, s) >= between - 1e-9).all())


def test_any_proposal_gives_the_same_model():
    """Weighted draws from a wider Gaussian replace draws from the prior.

    Differences of r between fresh pairs and θ = 0 change by less than 0.25 nats, half of
    their error with 400 simulations."""
    theta, x = spikes(1000, 0)
    wide = MultivariateNormal(torch.zeros(DIM), 2 * torch.eye(DIM))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        draws = torch.cat([theta[None], wide.sample((16, 1000))])
        log_weights = PRIOR.log_prob(draws) - wide.log_prob(draws)
        weighed = ExponentialFamily.fit(Candidates.unweighted(draws, x, log_weights))
    fresh, x_fresh = spikes(300, 1)
    points = torch.stack([fresh, torch.zeros_like(fresh)])
    one, other = (m(points, x_fresh) for m in (fit(theta, x), weighed))
    difference = (one[0] - one[1]) - (other[0] - other[1])
    assert float(difference.square().mean().sqrt()) < 0.25


def test_without_a_dependence_it_says_little():
    """1,000 simulations of noise in 20 features: r moves by less than 0.3 nats."""
    torch.manual_seed(0)
    theta, x = PRIOR.sample((1000,)), torch.randn(1000, 20)
    r = fit(theta, x)(PRIOR.sample((200, 50)), torch.randn(50, 20))
    assert float(r.abs().mean()) < 0.3
