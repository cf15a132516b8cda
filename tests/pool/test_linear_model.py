"""The linear model: exact where the simulator is linear, and its parts by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from sbi_jeffreys.pool import linear_model
from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.linear_model import LinearModel

SLOPES = torch.tensor([[1.0, 0.5], [0.0, -2.0], [0.3, 0.3]], dtype=torch.float64)


def linear_simulations(num, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    errors = noise * torch.randn(num, 3, generator=generator, dtype=torch.float64)
    return theta, theta @ SLOPES.T + 1.0 + errors


def fit(theta, x):
    return LinearModel.fit(Candidates.without_draws(theta, x))


def log_likelihood_ratio(theta, x, noise=0.5):
    """Return the exact log-ratio against θ = 0, shape `(sample, batch)`."""
    errors = x - 1.0 - theta @ SLOPES.T
    return ((x - 1.0).square() - errors.square()).sum(-1) / (2 * noise**2)


def error(num, seed):
    """Root mean squared error of the log-ratio against θ = 0, over fresh pairs."""
    model = fit(*linear_simulations(num, seed=seed))
    theta, x = linear_simulations(500, seed=1000 + seed)
    points = torch.stack([theta, torch.zeros_like(theta)])
    r, zero = model(points, x)
    return float((r - zero - log_likelihood_ratio(theta, x)).square().mean().sqrt())


def test_converges_to_the_likelihood_at_the_parametric_rate():
    """Four times the simulations halve the error, within 25 % over 20 seeds."""
    few, many = (np.mean([error(num, seed) for seed in range(20)]) for num in (400, 1600))
    assert few / many == pytest.approx(2.0, rel=0.25)


def test_without_a_dependence_it_says_nothing():
    """1,000 simulations of noise in 20 features: r moves by less than 0.2 nats."""
    torch.manual_seed(0)
    theta, x = torch.randn(1000, 3), torch.randn(1000, 20)
    r = fit(theta, x)(torch.randn(200, 50, 3), torch.randn(50, 20))
    assert float(r.abs().mean()) < 0.2


def test_many_features_are_shrunk():
    """With 200 features of noise beside three useful ones, 400 simulations are enough."""
    theta, x = linear_simulations(400)
    noise = torch.randn(400, 200, generator=torch.Generator().manual_seed(1)).double()
    model = fit(theta, torch.cat([x, noise], 1))
    fresh, x_fresh = linear_simulations(500, seed=7)
    noise = torch.randn(500, 200, generator=torch.Generator().manual_seed(2)).double()
    grid = torch.cat([fresh[None], fresh[torch.randperm(500)][None].expand(50, -1, -1)])
    grid[1:] = torch.randn(50, 500, 2, generator=torch.Generator().manual_seed(3))
    log_q = model(grid, torch.cat([x_fresh, noise], 1)).log_softmax(0)[0].mean()
    exact = log_likelihood_ratio(grid, x_fresh).log_softmax(0)[0].mean()
    none = -math.log(51)
    assert none + 0.6 * (float(exact) - none) < float(log_q) < float(exact)


def posterior_divergence(slopes, noise, seed, num=300):
    """KL(exact ‖ model) of the posterior over 100 points of the prior, in nats."""
    generator = torch.Generator().manual_seed(seed)
    theta, fresh = torch.randn(2, num, 8, generator=generator, dtype=torch.float64)
    errors, more = noise * torch.randn(2, num, 8, generator=generator).double()
    model = fit(theta, theta @ slopes.T + errors)
    x = fresh @ slopes.T + more
    points = torch.randn(100, num, 8, generator=generator, dtype=torch.float64)
    points[0] = fresh
    exact = -(x - points @ slopes.T).square().sum(-1) / (2 * noise**2)
    log_p, log_q = exact.log_softmax(0), model(points, x).log_softmax(0)
    return model, float((log_p.exp() * (log_p - log_q)).sum(0).mean())


def with_and_without_few(slopes, noise, seed, monkeypatch):
    few = posterior_divergence(slopes, noise, seed)
    with monkeypatch.context() as patch:
        patch.setattr(linear_model, "MAX_LASSO_FEATURES", 0)
        return few, posterior_divergence(slopes, noise, seed)


def test_few_coefficients_where_the_simulator_has_few(monkeypatch):
    """With one coefficient for each parameter, the divergence falls below 0.6 of that of
    the ridge regression, over five trials."""
    pairs = [
        with_and_without_few(torch.eye(8).double(), 1.0, seed, monkeypatch)
        for seed in range(5)
    ]
    assert sum(few for (_, few), _ in pairs) < 0.6 * sum(kl for _, (_, kl) in pairs)
    off = ~torch.eye(8, dtype=torch.bool)
    models = [
        model for (model, _), _ in pairs if not model.errors.scale_trils[:, off].any()
    ]
    assert len(models) >= 3
    assert all(int(model.summaries.weight[off].count_nonzero()) < 12 for model in models)


def test_all_coefficients_where_it_has_many(monkeypatch):
    """Every entry of x depends on every parameter, and the ridge regression is kept."""
    slopes = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()
    (model, few), (dense, kl) = with_and_without_few(slopes, 0.5, 0, monkeypatch)
    assert few == kl
    assert torch.equal(model.summaries.weight, dense.summaries.weight)


def test_its_value_is_that_of_the_mixtures():
    theta, x = linear_simulations(300)
    x = x + 3 * (torch.rand(300, 1, generator=torch.Generator().manual_seed(4)) < 0.3)
    model = fit(theta, x)
    s = x[:10] @ model.summaries.weight.T + model.summaries.bias
    means = theta[:10] @ model.slopes.weight.T + model.slopes.bias

    def density(mixture, points):
        parts = zip(mixture.logits, mixture.means, mixture.scale_trils, strict=True)
        return sum(
            logit.exp() * MultivariateNormal(mean, tril @ tril.T).log_prob(points).exp()
            for logit, mean, tril in parts
        )

    want = density(model.errors, s - means).log() - density(model.marginal, s).log()
    torch.testing.assert_close(model(theta[None, :10], x[:10])[0], want)


def test_it_is_normalised():
    """Z(x), the mean of e^r over the prior, is 1 within 5 %, on average over 200 x."""
    model = fit(*linear_simulations(2000))
    _, x = linear_simulations(200, seed=5)
    prior = linear_simulations(20_000, seed=6)[0].unsqueeze(1)
    z = model(prior.expand(-1, 200, -1), x).exp().mean(0)
    assert float(z.log().abs().mean()) < 0.05


@settings(max_examples=20, deadline=None)
@given(
    num=st.integers(2, 40),
    dim=st.integers(1, 4),
    features=st.integers(1, 60),
    kind=st.sampled_from(["noise", "constant", "copies", "exact"]),
    seed=st.integers(0, 1000),
)
def test_finite_whatever_it_is_fitted_to(num, dim, features, kind, seed):
    torch.manual_seed(seed)
    theta, x = torch.randn(num, dim), torch.randn(num, features)
    if kind == "constant":
        x[:] = 3.0
    elif kind == "copies":
        x[:] = x[:, :1]
    elif kind == "exact":
        x[:] = theta[:, :1]
    r = fit(theta, x)(torch.randn(5, num, dim), x)
    assert r.shape == (5, num)
    assert r.dtype == torch.float32
    assert r.isfinite().all()


@settings(max_examples=10, deadline=None)
@given(power=st.integers(-12, 12), shift=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_does_not_depend_on_the_units_of_x(power, shift, seed):
    theta, x = linear_simulations(200, seed=seed)
    points = torch.randn(5, 200, 2, dtype=torch.float64)
    r = fit(theta, x)(points, x)
    other = 10.0**power * (x + shift)
    moved = fit(theta, other)(points, other)
    torch.testing.assert_close(r, moved, rtol=1e-6, atol=1e-6)
