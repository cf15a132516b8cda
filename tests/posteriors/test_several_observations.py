"""Tempering to the joint posterior of several observations, against the exact one."""

import math

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_jeffreys.posteriors.potential import EnergyPotential
from sbi_jeffreys.posteriors.sbi_samplers import FlowProposal
from sbi_jeffreys.posteriors.several_observations import temper
from sbi_jeffreys.sampling.smc import resample_and_move
from tests.closed_forms import ConjugateGaussian

TASK = ConjugateGaussian(dim=2)


def tempered(x, num, seed, width=1.0):
    torch.manual_seed(seed)
    potential = EnergyPotential(TASK.energy(), TASK.prior, x)
    particles = temper(potential, FlowProposal(TASK.flow(width), potential), num)
    return particles, spread_out(potential, particles)


def spread_out(potential, particles):
    def log_density(theta):
        return potential(theta[:, 0], track_gradients=False).unsqueeze(1)

    support, num = potential.energy.support, len(particles.theta)
    return resample_and_move(log_density, support, particles, num).theta[:, 0]


@pytest.mark.parametrize(
    ("n", "width"),
    [(n, width) for n in (1, 2, 8) for width in (1.0, 2.0)]
    + [(40, 1.0), pytest.param(40, 2.0, marks=pytest.mark.slow)],
)
def test_moments_and_evidence_are_those_of_the_joint_posterior(n, width):
    """Ten runs of 1,000 particles. The mean of log Z is within five standard errors. In
    units of the exact standard deviation, means and standard deviations have an error of
    0.01, as of 5,000 to 10,000 independent draws; they are within five of it."""
    _, x = TASK.simulate(n, seed=n)
    x = x - x.mean(0) + 0.7  # several observations of the same parameters
    runs = [tempered(x, 1000, seed, width) for seed in range(10)]
    mean, variance = TASK.posterior(x)
    theta = torch.cat([(theta - mean) / math.sqrt(variance) for _, theta in runs])
    assert theta.mean(0).abs().max() < 0.07
    assert (theta.std(0) - 1).abs().max() < 0.06
    log_z = torch.stack([particles.log_z for particles, _ in runs])
    log_z_se = torch.stack([particles.log_z_se for particles, _ in runs])
    error = float(log_z.mean()) - TASK.log_evidence_ratio(x)
    assert abs(error) < 5 * float(log_z_se.mean()) / math.sqrt(10) + 0.01
    spread_of_runs, claimed = float(log_z.std()), float(log_z_se.mean())
    assert spread_of_runs < 2.5 * claimed + 1e-3


def test_many_parameters_take_more_steps_and_moves():
    """With 20 parameters and ten observations hardly any of 1,000 draws of the flow has a
    weight under the first density. If particles went there at once, log Z would be off by
    1.1. It has to be within 4.5 of its standard errors, and means within 4.5 of those of
    250 independent draws, 0.064."""
    task = ConjugateGaussian(dim=20)
    _, x = task.simulate(10, seed=1)
    x = x - x.mean(0) + 0.7
    torch.manual_seed(0)
    potential = EnergyPotential(task.energy(), task.prior, x)
    particles = temper(potential, FlowProposal(task.flow(), potential), 1000)
    error = float(particles.log_z) - task.log_evidence_ratio(x)
    assert float(particles.log_z_se) < 0.2
    assert abs(error) < 4.5 * float(particles.log_z_se)
    assert particles.pareto_k < 0.7
    mean, variance = task.posterior(x)
    z = (spread_out(potential, particles) - mean) / math.sqrt(variance)
    assert z.mean(0).abs().max() < 4.5 * 0.064


def test_hardly_any_particle_is_left_where_another_is():
    _, x = TASK.simulate(20, seed=1)
    _, theta = tempered(x - x.mean(0), 2000, seed=0)
    assert len(theta.unique(dim=0)) > 0.95 * 2000


def test_two_modes_keep_their_shares():
    """|θ| is observed, so q has equal modes at ±0.8. Among 4,000 particles a share has a
    standard error of 0.008, and of at most 0.02 after resampling: within five."""

    class Squared(torch.nn.Module):
        def forward(self, input, condition):
            return -0.5 * ((input.abs() - condition) / 0.3).square().sum(-1)

    task = ConjugateGaussian(dim=1)
    energy = task.energy()
    energy.net, energy.loc, energy.scale = Squared(), torch.zeros(1), torch.ones(1)
    potential = EnergyPotential(energy, task.prior, 0.8 * torch.ones(16, 1))
    torch.manual_seed(0)
    proposal = FlowProposal(task.flow(width=3.0), potential)
    theta = spread_out(potential, temper(potential, proposal, 4000))
    assert float((theta > 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert theta.abs().std() < 0.15


def test_a_flow_that_misses_the_prior_or_an_energy_that_is_nan_is_an_error():
    class Nowhere:
        def sample(self, shape):
            return torch.full((*shape, 2), 9.0)

        def log_prob(self, theta):
            return torch.zeros(len(theta))

    box = BoxUniform(-torch.ones(2), torch.ones(2))
    potential = EnergyPotential(TASK.energy(), box, torch.zeros(3, 2))
    with pytest.raises(RuntimeError, match="No draw of the flow is inside"):
        temper(potential, Nowhere(), 50)
    potential = EnergyPotential(TASK.energy(), TASK.prior, torch.zeros(3, 2))
    potential.energy.net.scale.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN or infinite at 50 of 50 draws"):
        temper(potential, FlowProposal(TASK.flow(), potential), 50)
