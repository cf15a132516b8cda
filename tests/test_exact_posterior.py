"""End to end against an exact posterior: θ ~ N(0, I), x = θ + σ ε in two dimensions,
so θ | x ~ N(x / (1 + σ²), σ² / (1 + σ²))."""

import math
import warnings
from functools import partial

import pytest
import torch
from sbi.diagnostics import check_sbc, run_sbc
from torch.distributions import MultivariateNormal, Normal

from sbi_jeffreys import JNPE, LogRatioNet, build_spline_flow

pytestmark = pytest.mark.slow

SIGMA = 0.5
FLOW = partial(build_spline_flow, hidden_features=32, num_transforms=3, num_blocks=1)
ENERGY = partial(LogRatioNet, hidden_features=64)
VARIANCE = SIGMA**2 / (1 + SIGMA**2)
PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))


def simulate(num, seed):
    torch.manual_seed(seed)
    theta = PRIOR.sample((num,))
    return theta, theta + SIGMA * torch.randn_like(theta)


def exact_log_prob(theta, x):
    mean, scale = x / (1 + SIGMA**2), math.sqrt(VARIANCE)
    return Normal(mean, scale).log_prob(theta).sum(-1)


def train(num, max_num_epochs, seed=0, **options):
    theta, x = simulate(num, seed)
    trainer = JNPE(PRIOR, FLOW, energy_net=ENERGY, show_progress_bars=False, **options)
    trainer.append_simulations(theta, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training stopped at")
        trainer.train(max_num_epochs=max_num_epochs, training_batch_size=100)
    return trainer


@pytest.fixture(scope="module")
def trained():
    return train(2000, max_num_epochs=40)


def test_flow_and_energy_are_close_to_the_exact_posterior(trained):
    """The mean of log π − log p over fresh pairs estimates the expected KL(π ‖ p), which
    is not negative: that fails by chance with a probability of 0.1 % (3 SE)."""
    theta, x = simulate(2000, seed=1)
    flow, energy = trained.flow, trained.energy
    with torch.no_grad():
        log_p = flow.log_prob(theta, x)[0]
        draws, log_p_draws = flow.sample_and_log_prob((100,), x)
        log_z = (energy(draws, x) - log_p_draws).logsumexp(0) - math.log(100)
        log_q = energy(theta[None], x)[0] - log_z
    for log_prob in (log_p, log_q):
        gap = exact_log_prob(theta, x) - log_prob
        error = gap.std() / math.sqrt(len(gap))
        assert -3 * error < gap.mean() < 0.06


def test_the_posterior_is_calibrated(trained):
    """Ranks over 400 fresh pairs. The bound on the p-values gives an exact posterior a
    false-failure rate of 2 × 0.1 %."""
    posterior = trained.build_posterior()
    theta, x = simulate(400, seed=2)
    ranks, dap = run_sbc(
        theta, x, posterior, num_posterior_samples=200, show_progress_bar=False
    )
    result = check_sbc(ranks, theta, dap, num_posterior_samples=200)
    assert (result["ks_pvals"] > 1e-3).all()


def test_training_long_on_few_simulations_does_not_overfit():
    """100 simulations, 200 epochs: maximum likelihood memorises, JNPE does not."""
    theta, x = simulate(2000, seed=1)
    losses = {}
    for name, weights in (("likelihood", (1.0, 0.0, 1.0)), ("jeffreys", None)):
        options = {"weighting": "fixed", "weights": weights} if weights else {}
        trainer = train(100, max_num_epochs=200, num_particles=1, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train(resume_training=True, max_num_epochs=200, stop_after_epochs=200)
        with torch.no_grad():
            losses[name] = -trainer.latest.flow.log_prob(theta, x).mean()
    best = -exact_log_prob(theta, x).mean()
    assert losses["jeffreys"] - best < 0.5 * (losses["likelihood"] - best)


def test_a_narrowed_posterior_fails_the_same_check(trained):
    """Samples drawn towards their mean must be seen to be overconfident."""

    class Narrowed:
        def sample_batched(self, shape, x, **kwargs):
            samples = trained.build_posterior().sample_batched(shape, x, **kwargs)
            return samples.mean(0) + 0.6 * (samples - samples.mean(0))

    theta, x = simulate(400, seed=2)
    ranks, dap = run_sbc(
        theta, x, Narrowed(), num_posterior_samples=200, show_progress_bar=False
    )
    result = check_sbc(ranks, theta, dap, num_posterior_samples=200)
    assert (result["ks_pvals"] < 1e-3).any()
    outer = ((ranks < 20) | (ranks > 180)).float().mean()
    assert outer > 0.3  # 0.2 for a calibrated posterior: too often at the ends
