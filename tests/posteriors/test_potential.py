"""The energy of a conjugate Gaussian as a potential, against the exact posterior."""

from copy import deepcopy

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import (
    AffineTransform,
    ExpTransform,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.prior_base import log_prior_floor
from sbi_jeffreys.posteriors.potential import EnergyPotential
from sbi_jeffreys.preprocessing.support import support_of
from tests.closed_forms import ConjugateGaussian

TASK = ConjugateGaussian(dim=3, variance=0.4)
THETA, X = TASK.simulate(60_000, seed=3)


def make_potential(x_o=None, prior=TASK.prior):
    return EnergyPotential(TASK.energy(), prior, x_o)


def exact(theta, x):
    mean, variance = TASK.posterior(x)
    posterior = MultivariateNormal(mean, variance * torch.eye(3))
    return posterior.log_prob(theta) + TASK.log_evidence_ratio(x)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("track_gradients", [True, False])
def test_log_ratios_of_several_observations_add_up_and_the_prior_counts_once(
    n, track_gradients
):
    got = make_potential(X[:n])(THETA[:50], track_gradients=track_gradients)
    torch.testing.assert_close(got, exact(THETA[:50], X[:n]), atol=2e-4, rtol=1e-4)


def test_more_pairs_than_are_evaluated_at_once():
    got = make_potential(X[:3])(THETA[:40_000], track_gradients=False)
    torch.testing.assert_close(got, exact(THETA[:40_000], X[:3]), atol=1e-3, rtol=1e-3)


def test_each_theta_may_have_an_observation_of_its_own():
    potential = make_potential()
    potential.set_x(X[:5], x_is_iid=False)
    want = torch.stack(
        [exact(t, x.unsqueeze(0)) for t, x in zip(THETA[:5], X[:5], strict=True)]
    )
    torch.testing.assert_close(potential(THETA[:5]), want, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_posterior():
    theta = THETA[:4].clone().requires_grad_()
    (slope,) = torch.autograd.grad(make_potential(X[:3])(theta).sum(), theta)
    mean, variance = TASK.posterior(X[:3])
    torch.testing.assert_close(slope, (mean - THETA[:4]) / variance, atol=1e-3, rtol=1e-3)
    assert not make_potential(X[:1])(theta, track_gradients=False).requires_grad


def test_there_is_nothing_outside_of_the_prior():
    """Nor a gradient that is not finite inside."""
    box = BoxUniform(-torch.ones(3), torch.ones(3))
    potential = make_potential(X[:2], prior=box)
    theta = torch.tensor([[0.0, 0.0, 1.5], [0.1, 0.2, 0.3]], requires_grad=True)
    values = potential(theta)
    assert values.isneginf().tolist() == [True, False]
    (slope,) = torch.autograd.grad(values[1], theta)
    assert slope[1].isfinite().all()


def test_the_prior_that_counts_is_that_of_the_training():
    """Another one, given for its support, changes nothing inside."""
    narrow = MultivariateNormal(torch.zeros(3), 0.1 * torch.eye(3))
    values = [make_potential(X[:4], prior=p)(THETA[:20]) for p in (TASK.prior, narrow)]
    torch.testing.assert_close(*values)


def test_where_the_prior_is_zero_inside_of_its_support_there_is_nothing():
    class Half(MultivariateNormal):
        def log_prob(self, value):
            return torch.where(value[:, 0] > 0, super().log_prob(value), -torch.inf)

    potential = make_potential(X[:4])
    potential.energy.prior = Half(torch.zeros(3), torch.eye(3))
    values = potential(THETA[:50])
    assert torch.equal(values.isneginf(), THETA[:50, 0] <= 0)


def test_a_prior_is_not_divided_out_where_the_energy_does_not_know_of_it():
    """An energy from a Gaussian, and a prior that falls to zero at 3 with all slopes.

    Divided out it was 240 nats at 3.000001; the posterior is near 4.5.
    """

    def log_ratio(theta, x):
        return -(energy.loc + energy.scale * theta - x)[..., 0].square() / 0.18

    torch.manual_seed(0)
    parts = [ExpTransform(), AffineTransform(3.0, 1.0)]
    prior = Independent(
        TransformedDistribution(Normal(torch.zeros(1), torch.ones(1)), parts), 1
    )
    theta = prior.sample((200,))
    base = Independent(Normal(theta.mean(0), theta.std(0)), 1)
    least = log_prior_floor(prior, base, theta)
    assert least == float(prior.log_prob(theta).min())
    energy = ConditionalEnergy(
        log_ratio,
        base,
        support_of(prior, theta),
        theta,
        torch.nn.Identity(),
        torch.Size([1]),
        prior,
        least,
    )
    near, central = 3 + 10 ** -torch.arange(2.0, 7.0).unsqueeze(1), torch.tensor([[4.5]])
    values = EnergyPotential(energy, prior, torch.full((5, 1), 4.5))(
        torch.cat([near, central])
    )
    assert bool((values[:-1] < values[-1]).all())
    alone = EnergyPotential(energy, prior, torch.full((1, 1), 4.5))(central)
    torch.testing.assert_close(values[-1:], 5 * alone - 4 * prior.log_prob(central))


def test_a_prior_that_the_energy_starts_from_is_divided_out_in_all_places():
    assert log_prior_floor(TASK.prior, deepcopy(TASK.prior), THETA[:9]) == -torch.inf
    assert log_prior_floor(None, TASK.prior, THETA[:9]) == -torch.inf


def test_a_new_observation_replaces_the_old_one():
    potential = make_potential(X[:1])
    first = potential(THETA[:5])
    copy = deepcopy(potential)
    potential.set_x(X[1])  # without a batch axis
    assert not torch.allclose(first, potential(THETA[:5]))
    torch.testing.assert_close(copy(THETA[:5]), first)
    torch.testing.assert_close(potential.to("cpu")(THETA[:5]), potential(THETA[:5]))
    potential.set_x(X[:1])
    torch.testing.assert_close(first, potential(THETA[:5]))


def test_several_observations_need_a_proper_prior():
    potential = make_potential(X[:1])
    potential.energy.prior = None  # as of an energy that was trained without
    with pytest.raises(ValueError, match="got 2 observations"):
        potential.set_x(X[:2])
    potential.set_x(X[:2], x_is_iid=False)


def test_without_an_observation_there_is_no_potential():
    with pytest.raises(ValueError, match="No observed data"):
        make_potential()(THETA[:2])
    with pytest.raises(RuntimeError, match="trailing dimensions"):
        make_potential(X[:1, :2])
