"""The fitted proposal: an exact density, and the samples it was fitted to."""

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import Independent, LogNormal, MultivariateNormal

from sbi_jeffreys import FittedProposal

BOX = BoxUniform(-torch.ones(2), torch.ones(2))
REAL = MultivariateNormal(torch.zeros(2), torch.eye(2))
POSITIVE = Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1)


def two_modes(num=3000, seed=0):
    """Samples near two corners of the box, one of them at its edges."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.tensor([[-0.5, -0.5], [0.95, 0.9]])
    chosen = torch.randint(2, (num,), generator=generator)
    noise = 0.1 * torch.randn(num, 2, generator=generator)
    points = centers[chosen] + noise
    return torch.where(points > 1, 2 - points, points)  # reflected


def test_one_gaussian_has_the_moments_of_the_samples_times_the_widening():
    torch.manual_seed(0)
    root = torch.tensor([[0.5, 0.0], [0.3, 0.2]])
    samples = torch.tensor([1.0, -2.0]) + torch.randn(3000, 2) @ root.T
    fitted = FittedProposal.fit(samples, REAL, widening=2.0)
    assert len(fitted.components.loc) == 1
    scale = fitted.unconstrained.scale
    mean = fitted.unconstrained.loc + scale * fitted.components.loc[0]
    covariance = fitted.components.covariance_matrix[0] * torch.outer(scale, scale)
    assert torch.allclose(mean, samples.mean(0), atol=1e-4)
    assert torch.allclose(covariance, 4 * torch.cov(samples.T), rtol=2e-3)
    exact = MultivariateNormal(mean, covariance)
    points = 3 * torch.randn(100, 2)
    assert torch.allclose(fitted.log_prob(points), exact.log_prob(points), atol=1e-3)


@pytest.mark.parametrize("widening", [1.0, 1.5])
def test_a_density_in_a_box_integrates_to_one(widening):
    fitted = FittedProposal.fit(two_modes(), BOX, widening)
    assert len(fitted.components.loc) > 1
    edges = torch.linspace(-1, 1, 2401)
    middles = (edges[1:] + edges[:-1]) / 2
    grid = torch.cartesian_prod(middles, middles)
    mass = fitted.log_prob(grid).double().exp().mean() * 4
    assert mass == pytest.approx(1.0, abs=3e-3)


@pytest.mark.parametrize(
    ("prior", "samples"),
    [(BOX, two_modes()), (REAL, two_modes()), (POSITIVE, two_modes().exp())],
)
def test_samples_have_the_density_and_stay_inside(prior, samples):
    """The mean of 1 / density, over samples in a small box, is the box's volume. The
    tolerance is five standard errors."""
    fitted = FittedProposal.fit(samples, prior)
    torch.manual_seed(0)
    drawn = fitted.sample((20_000,))
    assert prior.support.check(drawn).all()
    low, high = samples.quantile(0.2, 0), samples.quantile(0.4, 0)
    inside = ((drawn > low) & (drawn < high)).all(-1)
    ratios = torch.where(inside, (-fitted.log_prob(drawn)).exp(), 0.0).double()
    error = float(ratios.std() / len(ratios) ** 0.5)
    volume = float((high - low).prod())
    assert float(ratios.mean()) == pytest.approx(volume, abs=5 * error)
    assert error < 0.1 * volume


def test_outside_of_the_prior_the_density_is_zero():
    fitted = FittedProposal.fit(two_modes(), BOX)
    points = torch.tensor([[1.1, 0.0], [0.0, -3.0]])
    assert (fitted.log_prob(points) == -torch.inf).all()


def test_the_gradient_is_finite_in_corners():
    fitted = FittedProposal.fit(two_modes(), BOX)
    corners = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(fitted.log_prob(corners).sum(), corners)
    assert slope.isfinite().all()


def test_arrays_give_the_same_density():
    fitted = FittedProposal.fit(two_modes(), BOX, 1.3)
    copy = FittedProposal.from_arrays(fitted.arrays(), BOX)
    points = BOX.sample((500,))
    assert torch.equal(copy.log_prob(points), fitted.log_prob(points))
    torch.manual_seed(1)
    some = fitted.sample((5,))
    torch.manual_seed(1)
    assert torch.equal(copy.sample((5,)), some)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="more than 2 samples, got 2"):
        FittedProposal.fit(torch.zeros(2, 2), BOX)


def test_a_parameter_that_does_not_vary_gives_a_density():
    samples = torch.stack([torch.zeros(200), torch.linspace(-0.5, 0.5, 200)], -1)
    fitted = FittedProposal.fit(samples, BOX)
    assert fitted.log_prob(samples).isfinite().all()
