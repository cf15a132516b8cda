"""Annealing between Gaussians, against the exact ratio of their normalisers."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_jeffreys.preprocessing.support import support_of
from sbi_jeffreys.sampling.smc import (
    MIN_ESS,
    anneal,
    log_ratio,
    move_particles,
    resample_and_move,
)

NUM = 1000
SUPPORT = support_of(
    MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.randn(100, 2)
)


def log_gaussian(theta, mean=0.0, scale=1.0):
    """Not normalised."""
    return -0.5 * ((theta - mean) / scale).square().sum(-1)


def run(mean, scale, batch=3):
    """Go from N(0, 1) to N(mean, scale²)."""

    def densities(theta):
        return log_gaussian(theta), log_gaussian(theta, mean, scale)

    theta = torch.randn(NUM, batch, 2)
    log_weights = log_ratio(densities, theta)
    particles = anneal(densities, SUPPORT, theta, log_weights, NUM, MIN_ESS * NUM)
    return theta, densities, particles


@pytest.mark.parametrize(("mean", "scale"), [(4.0, 0.5), (0.0, 0.05)])
def test_log_z_and_moments_are_those_of_the_second_density(mean, scale):
    """log Z within five of its standard errors; mean and deviation in units of the exact
    ones, as of 3,000 draws of which a fourth is effective, within five."""
    torch.manual_seed(0)
    theta, densities, particles = run(mean, scale)
    assert not torch.equal(particles.theta, theta)
    error = (particles.log_z - 2 * math.log(scale)).abs()
    assert (error < 5 * particles.log_z_se).all()
    assert (particles.log_z_se < 0.2).all()
    moved = resample_and_move(lambda t: densities(t)[1], SUPPORT, particles, NUM).theta
    z = (moved - mean).flatten(0, 1) / scale
    assert z.mean(0).abs().max() < 5 / math.sqrt(750)
    assert (z.std(0) - 1).abs().max() < 5 / math.sqrt(2 * 750)
    assert len(z.unique(dim=0)) > 0.9 * len(z)


def test_a_density_close_by_takes_one_step_and_keeps_the_draws():
    torch.manual_seed(0)
    theta, densities, particles = run(0.1, 1.0)
    assert torch.equal(particles.theta, theta)
    torch.testing.assert_close(particles.log_weights, log_ratio(densities, theta))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_density_that_is_not_finite_is_an_error(value):
    with pytest.raises(FloatingPointError, match="NaN or infinite at 30 of 30 draws"):
        move_particles(
            lambda theta: torch.full(theta.shape[:2], value),
            SUPPORT,
            torch.randn(10, 3, 2),
        )
