import math

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from sbi.utils.sbiutils import ImproperEmpirical
from scipy import stats
from torch import nn
from torch.distributions import (
    Gamma,
    Independent,
    MultivariateNormal,
    Normal,
    constraints,
)

from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.log_ratio import LogRatioEnsemble, LogRatioNet
from sbi_jeffreys.models.prior_base import base_density
from sbi_jeffreys.preprocessing.support import support_of

PRIORS = {
    "box": BoxUniform(-torch.ones(2), 3 * torch.ones(2)),
    "normal": MultivariateNormal(torch.ones(2), 4 * torch.eye(2)),
    "mixed": MultipleIndependent(
        [Gamma(torch.ones(1), torch.ones(1)), Normal(torch.zeros(1), torch.ones(1))],
        validate_args=False,
    ),
}


def make_energy(prior, theta, x):
    net = LogRatioNet(theta.shape[1], x.shape[1], hidden_features=16)
    return ConditionalEnergy(
        net,
        base_density(prior, theta, support_of(prior, theta)),
        support_of(prior, theta),
        theta,
        nn.Identity(),
        x[0].shape,
    )


@pytest.mark.parametrize("name", PRIORS)
def test_starts_as_the_prior(name):
    """So that Z = 1 exactly, whatever x."""
    prior = PRIORS[name]
    theta, x = prior.sample((60,)), torch.randn(60, 3)
    energy = make_energy(prior, theta, x)
    f = energy(theta.view(3, 20, 2), x[:20])
    assert f.shape == (3, 20)
    torch.testing.assert_close(f.flatten(), prior.log_prob(theta))


@pytest.mark.parametrize("prior", [None, "empirical"])
def test_a_gaussian_stands_in_for_a_prior_without_density(prior):
    theta = 3 + 2 * torch.randn(500, 2)
    if prior:
        prior = ImproperEmpirical(theta, torch.ones(500))
    base = base_density(prior, theta, support_of(None, theta))
    expected = Independent(Normal(theta.mean(0), theta.std(0)), 1)
    torch.testing.assert_close(base.log_prob(theta), expected.log_prob(theta))


@pytest.mark.parametrize("detach", [True, False])
def test_a_density_outside_of_torch_is_replaced_with_a_warning(detach):
    class NumpyNormal(MultivariateNormal):
        def log_prob(self, value):
            density = stats.multivariate_normal(np.zeros(2), np.eye(2))
            values = value.detach() if detach else value
            return torch.as_tensor(density.logpdf(values.numpy())).float()

    prior = NumpyNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((100,))
    with pytest.warns(UserWarning, match="not differentiable"):
        base = base_density(prior, theta, support_of(prior, theta))
    assert isinstance(base, Independent)


def test_parameters_reach_the_network_standardised():
    class Recording(nn.Module):
        def forward(self, input, condition):
            self.seen = input
            return input.sum(-1)

    prior = PRIORS["normal"]
    theta = prior.sample((400,))
    net = Recording()
    energy = ConditionalEnergy(
        net, prior, support_of(prior, theta), theta, nn.Identity(), torch.Size((3,))
    )
    energy(theta.unsqueeze(0), torch.randn(400, 3))
    torch.testing.assert_close(net.seen[0].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(net.seen[0].std(0), torch.ones(2), atol=1e-5, rtol=0)


def test_the_energy_is_the_average_of_its_members():
    prior = PRIORS["box"]
    theta, x = prior.sample((60,)), torch.randn(60, 3)
    energy = make_energy(prior, theta, x)
    energy.net = LogRatioEnsemble(LogRatioNet(2, 3, hidden_features=16) for _ in range(3))
    for parameter in energy.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    points = theta.view(3, 20, 2)
    members = energy.members(points, x[:20])
    assert members.shape == (3, 3, 20)
    torch.testing.assert_close(energy(points, x[:20]), members.mean(0))
    for net, f in zip(energy.net, members, strict=True):
        alone = make_energy(prior, theta, x)
        alone.net = net
        torch.testing.assert_close(alone(points, x[:20]), f)
    corner = torch.tensor([[[3.1, 0.0]]])
    assert energy.members(corner, x[:1]).isneginf().all()


@pytest.mark.parametrize("shape", [(20, 3), (3, 20, 2), (60,), (1, 2, 3, 20)])
def test_a_network_that_returns_another_shape_is_told(shape):
    class Wrong(nn.Module):
        def forward(self, input, condition):
            return torch.zeros(shape)

    prior = PRIORS["box"]
    theta, x = prior.sample((60,)), torch.randn(60, 3)
    energy = make_energy(prior, theta, x)
    energy.net = Wrong()
    with pytest.raises(ValueError, match=r"shape \(3, 20\), or that of several members"):
        energy(theta.view(3, 20, 2), x[:20])


def test_a_parameter_on_a_bound_has_the_density_inside():
    prior = PRIORS["box"]
    theta, x = prior.sample((60,)), torch.randn(60, 3)
    energy = make_energy(prior, theta, x)
    corner = torch.tensor([[[3.0, -1.0]]])
    assert prior.log_prob(corner).isneginf().all()  # the upper bound is excluded
    assert energy(corner, x[:1]).item() == pytest.approx(-math.log(16))


def test_one_theta_for_several_conditions_and_shapes_that_do_not_match():
    prior = PRIORS["box"]
    theta, x = prior.sample((60,)), torch.randn(60, 3)
    energy = make_energy(prior, theta, x)
    for parameter in energy.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    shared = energy(theta[:6].unsqueeze(1), x[:3])
    torch.testing.assert_close(
        shared, energy(theta[:6].unsqueeze(1).expand(-1, 3, -1), x[:3])
    )
    for wrong in (theta[:4].view(2, 2, 2), theta[:3]):
        with pytest.raises(ValueError, match="`input` of shape"):
            energy(wrong, x[:3])


def test_outside_of_the_prior_there_is_nothing():
    prior = PRIORS["box"]
    theta, x = prior.sample((60,)), torch.randn(60, 3)
    energy = make_energy(prior, theta, x)
    assert energy(torch.tensor([[[3.1, 0.0]]]), x[:1]).isneginf().all()


def test_a_density_that_is_zero_inside_of_its_support_is_replaced():
    class Misdeclared(BoxUniform):
        support = constraints.independent(constraints.real, 1)

    prior = Misdeclared(-torch.ones(2), torch.ones(2))
    prior.base_dist._validate_args = False
    theta = prior.sample((100,))
    with pytest.warns(UserWarning, match="zero inside of its `support`"):
        base_density(prior, theta, support_of(prior, theta))


def test_a_density_that_is_zero_in_a_corner_is_replaced():
    """The corner, a fifth of the square, is off the axes, but where marginals meet."""

    class Cornerless(BoxUniform):
        def log_prob(self, value):
            corner = (value > 0.1).all(-1)
            return torch.where(corner, -torch.inf, super().log_prob(value))

    prior = Cornerless(-torch.ones(2), torch.ones(2))
    theta = BoxUniform(-torch.ones(2), torch.ones(2)).sample((200,))
    theta = theta[prior.log_prob(theta).isfinite()]
    with pytest.warns(UserWarning, match="zero inside of its `support`"):
        base_density(prior, theta, support_of(prior, theta))
