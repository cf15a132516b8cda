"""Two halves of a population: right when they agree, and seen when they do not."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_jeffreys.preprocessing.support import support_of
from sbi_jeffreys.sampling.halves import MAX_GAP, anneal_in_halves
from sbi_jeffreys.sampling.smc import Moved, log_ratio, resample_and_move

SUPPORT = support_of(
    MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.randn(100, 2)
)
FAR = torch.tensor([8.0, 0.0])
SHARE = 0.9
"""Of the second mode in `both_modes`."""


def first_mode(theta):
    return -0.5 * theta.square().sum(-1)


def both_modes(theta):
    """The same Gaussian at the origin, and one eight standard deviations away."""
    return torch.logaddexp(
        math.log(1 - SHARE) + first_mode(theta), math.log(SHARE) + first_mode(theta - FAR)
    )


def run(log_density, theta, log_weights=None):
    """Go from N(0, 1) to a density, and move there."""

    def densities(theta):
        return first_mode(theta), log_density(theta)

    if log_weights is None:
        log_weights = log_ratio(densities, theta)
    halves = anneal_in_halves(densities, SUPPORT, theta, log_weights, 1000, 100)
    return halves, resample_and_move(log_density, SUPPORT, halves.particles, 1000)


def test_joined_halves_have_the_normaliser_and_moments_of_the_second_density():
    """log Z within five of its standard errors, and moments as of 500 draws."""
    torch.manual_seed(0)
    shift, scale = 4.0, 0.5

    def narrow(theta):
        return first_mode((theta - shift) / scale)

    halves, (theta, moved) = run(narrow, torch.randn(2000, 3, 2))
    error = halves.particles.log_z - 2 * math.log(scale)
    assert (error.abs() < 5 * halves.particles.log_z_se).all()
    assert halves.are_reliable(moved).all()
    z = (theta - shift) / scale
    assert z.mean((0, 1)).abs().max() < 5 / math.sqrt(500)
    assert (z.std((0, 1)) - 1).abs().max() < 5 / math.sqrt(2 * 500)


def test_a_mode_that_one_half_alone_has_found_is_noticed():
    """Half of ten columns has no draw in the second mode; the other has a hundredth."""
    torch.manual_seed(0)
    theta = torch.randn(2000, 10, 2)
    theta[1000:1010] += FAR
    flow_share = 10 / 2000
    log_weights = both_modes(theta) - torch.logaddexp(
        first_mode(theta), math.log(flow_share) + first_mode(theta - FAR)
    )

    def densities(theta):
        flow = torch.logaddexp(
            first_mode(theta), math.log(flow_share) + first_mode(theta - FAR)
        )
        return flow, both_modes(theta)

    halves = anneal_in_halves(densities, SUPPORT, theta, log_weights, 1000, 100)
    assert (halves.gap > MAX_GAP).all()
    assert not halves.are_reliable(torch.ones(10)).any()


def test_particles_that_do_not_move_are_noticed():
    """A ring a thousandth as thick as wide: proposals leave it."""
    torch.manual_seed(0)

    def ring(theta):
        return -0.5 * ((theta.norm(dim=-1) - 2) / 0.002).square()

    halves, moved = run(ring, 1.5 * torch.randn(2000, 3, 2))
    assert not halves.are_reliable(moved.moved).any()


def test_a_half_without_weight_has_no_share_and_no_agreement():
    """The other's Z is then halved."""
    torch.manual_seed(0)
    log_weights = torch.zeros(2000, 2)
    log_weights[:1000, 1] = -torch.inf
    theta = torch.randn(2000, 2, 2)
    halves, _ = run(first_mode, theta, log_weights)
    assert halves.gap.tolist() == [0.0, math.inf]
    expected = torch.tensor([0.0, -math.log(2)])
    torch.testing.assert_close(halves.particles.log_z, expected)
    assert halves.particles.log_weights[:1000, 1].isneginf().all()


@pytest.mark.parametrize("num", [1000, 1001])
def test_all_draws_are_kept_in_place_but_the_last_of_an_odd_number(num):
    theta = torch.randn(num, 3, 2)
    halves, _ = run(first_mode, theta)
    assert torch.equal(halves.particles.theta, theta[:1000])
    assert isinstance(run(first_mode, theta)[1], Moved)
