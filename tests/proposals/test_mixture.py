"""The mixture of proposals: its density by hand, and its samples."""

import pytest
import torch
from sbi.utils import RestrictedPrior
from torch.distributions import MultivariateNormal

from sbi_jeffreys.proposals.mixture import ProposalMixture, TruncatedPrior

PRIOR = MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))
NARROW = MultivariateNormal(torch.ones(2), 0.01 * torch.eye(2))


def test_the_density_is_the_weighted_sum():
    mixture = ProposalMixture(PRIOR, [PRIOR, NARROW], [100, 300])
    points = torch.randn(50, 3, 2)
    by_hand = (
        0.25 * PRIOR.log_prob(points).exp() + 0.75 * NARROW.log_prob(points).exp()
    ).log()
    assert mixture.log_prob(points).shape == (50, 3)
    assert torch.allclose(mixture.log_prob(points), by_hand, atol=1e-5)


def test_it_is_never_below_the_prior_times_its_share():
    mixture = ProposalMixture(PRIOR, [PRIOR, NARROW], [100, 300])
    points = 20 * torch.randn(1000, 2)
    bound = PRIOR.log_prob(points) + torch.tensor(0.25).log()
    assert (mixture.log_prob(points) >= bound - 1e-4).all()


def test_samples_come_from_each_part_in_proportion():
    """The number near the narrow part is within five standard deviations."""
    mixture = ProposalMixture(PRIOR, [PRIOR, NARROW], [100, 300])
    torch.manual_seed(0)
    drawn = mixture.sample((4000,))
    assert drawn.shape == (4000, 2)
    near = int(((drawn - 1).norm(dim=-1) < 0.5).sum())
    assert abs(near - 3000) < 5 * (4000 * 0.75 * 0.25) ** 0.5 + 4000 * 0.25 * 0.03
    assert mixture.latest is NARROW
    assert mixture.support is PRIOR.support


def test_a_truncated_prior_has_its_normalised_density():
    """A quarter of the prior; the acceptance is estimated from 10,000 samples."""
    restricted = RestrictedPrior(
        PRIOR, lambda theta: (theta > 0).all(-1), sample_with="rejection"
    )
    torch.manual_seed(0)
    truncated = TruncatedPrior(restricted, PRIOR)
    points = torch.tensor([[0.5, 0.5], [-0.5, 0.5]], requires_grad=True)
    log_prob = truncated.log_prob(points)
    share = float((PRIOR.log_prob(points[0]) - log_prob[0]).exp())
    assert share == pytest.approx(0.25, rel=0.1)
    assert log_prob[1] == -torch.inf
    mixture = ProposalMixture(PRIOR, [PRIOR, truncated], [1, 1])
    torch.autograd.grad(mixture.log_prob(points).sum(), points)
    assert mixture.log_prob(points).isfinite().all()
