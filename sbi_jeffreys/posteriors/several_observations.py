r"""The joint posterior of several observations of the same parameters, by tempering.

The flow knows one observation at a time. Perhaps none of its draws is close to the joint
posterior of many observations. So particles start at the mixture of the flow given each
of the n observations, and go by sequential Monte Carlo through

.. math:: q_t(\theta) \propto p(\theta) \exp\Big(t \sum_i r(\theta, x_i)\Big),
    \qquad t \text{ from } 1/n \text{ to } 1.

The first of these densities is about as wide as the posterior given one observation. The
last is the joint posterior.
"""

import torch
from torch import Tensor

from sbi_jeffreys.posteriors.potential import EnergyPotential
from sbi_jeffreys.posteriors.sbi_samplers import FlowProposal
from sbi_jeffreys.sampling.halves import MIN_MOVED
from sbi_jeffreys.sampling.importance_weights import ImportanceWeights, smoothed_weights
from sbi_jeffreys.sampling.psis import MAX_PARETO_K
from sbi_jeffreys.sampling.smc import (
    MIN_ESS,
    MIN_PARTICLES,
    Particles,
    anneal,
    checked,
    log_ratio,
    resample_and_move,
)


@torch.no_grad()
def temper(
    potential: EnergyPotential,
    proposal: FlowProposal,
    num: int,
    show_progress: bool = False,
) -> Particles:
    r"""Draw weighted particles from the posterior given the potential's observations.

    Args:
        potential: :math:`\log p(\theta) + \sum_i r(\theta, x_i)`.
        proposal: The mixture of the flow given each observation.
        num: Number of particles, at least 4.
        show_progress: Whether to show how far t has come.

    Returns:
        Particles of a batch of one.

    Raises:
        RuntimeError: If no draw of the flow is inside the prior's support.
        FloatingPointError: If the energy is NaN or plus infinity.
    """
    n, support = len(potential.x_o), potential.energy.support

    def single_and_joint(theta: Tensor) -> tuple[Tensor, Tensor]:
        """The logs of q_{1/n} and of the joint posterior."""
        log_prior, log_ratios = _log_prior_and_ratios(potential, theta.flatten(0, 1))
        single, joint = log_prior + log_ratios / n, log_prior + log_ratios
        return single.reshape(theta.shape[:2]), joint.reshape(theta.shape[:2])

    def flow_and_single(theta: Tensor) -> tuple[Tensor, Tensor]:
        """The logs of the flow's mixture and of q_{1/n}."""
        log_flow = proposal.log_prob(theta.flatten(0, 1))
        return log_flow.reshape(theta.shape[:2]), single_and_joint(theta)[0]

    theta = proposal.sample((num,)).unsqueeze(1)
    log_weights = log_ratio(flow_and_single, theta)
    if bool(log_weights.isneginf().all()):
        raise RuntimeError("No draw of the flow is inside the prior's support.")
    min_ess = MIN_ESS * num
    first = anneal(flow_and_single, support, theta, log_weights, num, min_ess)
    if n == 1:
        return first
    theta, moved = resample_and_move(
        lambda theta: single_and_joint(theta)[0], support, first, num
    )
    log_weights = log_ratio(single_and_joint, theta)
    last = anneal(
        single_and_joint, support, theta, log_weights, num, min_ess, show_progress
    )
    return last._replace(
        log_z=first.log_z + last.log_z,
        log_z_se=torch.hypot(first.log_z_se, last.log_z_se),
        pareto_k=torch.maximum(first.pareto_k, last.pareto_k),
        moved=torch.stack([first.moved, moved, last.moved]).amin(0),
    )


def joint_importance_weights(
    potential: EnergyPotential,
    proposal: FlowProposal,
    num: int,
    show_progress: bool = False,
) -> ImportanceWeights:
    """Return the particles of `temper` with smoothed weights, for a batch of one.

    The arguments are those of `temper`. The weights are those of its last step. k̂ is the
    largest of all steps.
    """
    particles = temper(potential, proposal, num, show_progress)
    return smoothed_weights(particles.theta, particles.log_weights)._replace(
        pareto_k=particles.pareto_k,
        log_z=particles.log_z,
        log_z_se=particles.log_z_se,
    )


def joint_samples(
    potential: EnergyPotential,
    proposal: FlowProposal,
    num: int,
    show_progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return samples without weights, `(num, D)`, and whether they are reliable, `(1,)`.

    They are where k̂ is at most 0.7 in all steps and the particles moved. The arguments
    are those of `temper`, but `num` may be any number of samples.
    """
    num_particles = max(num, MIN_PARTICLES)
    particles = temper(potential, proposal, num_particles, show_progress)

    def log_density(theta: Tensor) -> Tensor:
        return potential(theta[:, 0], track_gradients=False).unsqueeze(1)

    support = potential.energy.support
    theta, moved = resample_and_move(log_density, support, particles, num_particles)
    is_reliable = torch.minimum(moved, particles.moved) >= MIN_MOVED
    return theta[:num, 0], is_reliable & (particles.pareto_k <= MAX_PARETO_K)


def _log_prior_and_ratios(
    potential: EnergyPotential, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log p(θ) and Σ r(θ, x_i), each `(N,)`; the latter -inf outside the prior."""
    values = checked(potential(theta, track_gradients=False))
    outside = values.isneginf()
    log_prior = torch.where(outside, 0.0, potential.log_prior(theta))
    return log_prior, torch.where(outside, -torch.inf, values - log_prior)
