import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.utils import BoxUniform, MultipleIndependent, RestrictedPrior
from torch.distributions import (
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    SigmoidTransform,
)

from sbi_jeffreys.preprocessing.support import Support, support_of
from sbi_jeffreys.preprocessing.true_support import with_true_support

one = torch.ones(1)
PRIORS = {
    "box": BoxUniform(-2 * torch.ones(3), torch.tensor([0.0, 1.0, 1e3])),
    "normal": MultivariateNormal(torch.ones(2), 4 * torch.eye(2)),
    "beta": Independent(Beta(2 * torch.ones(2), torch.ones(2)), 1),
    "gamma": Independent(Gamma(2 * torch.ones(2), torch.ones(2)), 1),
    "lognormal": Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1),
    "mixed": MultipleIndependent(
        [
            Gamma(one, one),
            BoxUniform(torch.zeros(2), torch.ones(2)),
            MultivariateNormal(torch.zeros(2), torch.eye(2)),
            LogNormal(0 * one, one),
        ]
    ),
}
inf = float("inf")
bounds = st.tuples(
    st.sampled_from([-inf, -3.0, 0.0, 1e-2]), st.sampled_from([inf, 0.5, 7.0, 100.0])
)


@given(bounds, st.floats(-3, 3), st.floats(0.1, 3.0))
@settings(max_examples=200, deadline=None)
def test_is_a_bijection_with_the_jacobian_of_autograd(bound, u, softness):
    low, high = (torch.tensor([b], dtype=torch.float64) for b in bound)
    support = Support(low, high, softness)
    u = torch.tensor([u], dtype=torch.float64)
    theta, log_det = support.inverse(u)
    assert bool((low < theta) & (theta < high))
    theta.requires_grad_()
    back, log_det_back = support(theta)
    (slope,) = torch.autograd.grad(back.sum(), theta)
    # Close to an edge θ is rounded: the slope times the spacing of doubles bounds u.
    spacing = 1e-15 * (1 + theta.abs().item()) * slope.item()
    assert back.item() == pytest.approx(u.item(), abs=1e-9 + 10 * spacing)
    assert log_det_back.item() == pytest.approx(slope.log().item(), abs=1e-6)
    assert log_det.item() == pytest.approx(
        log_det_back.item(), abs=1e-6 + 10 * spacing / softness
    )


@pytest.mark.parametrize("name", PRIORS)
def test_maps_every_prior_to_standardised_space_and_never_leaves_it(name):
    prior = PRIORS[name]
    torch.manual_seed(0)
    theta = prior.sample((5000,))
    support = support_of(prior, theta)
    u, _ = support(theta)
    torch.testing.assert_close(u.mean(0), torch.zeros(u.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(u.std(0), torch.ones(u.shape[1]), atol=1e-4, rtol=0)
    far, log_det = support.inverse(8 * torch.randn(20_000, theta.shape[1]))
    assert prior.support.check(far).all()
    assert prior.log_prob(far).isfinite().all()
    assert log_det.isfinite().all()


def test_is_the_identity_inside_and_the_logit_when_soft():
    low, high = torch.zeros(1).double(), torch.ones(1).double()
    inside = torch.linspace(0.3, 0.7, 9, dtype=torch.float64).unsqueeze(-1)
    hard, _ = Support(low, high, softness=0.05)(inside)
    torch.testing.assert_close(hard, 2 * math.sqrt(3) * (inside - 0.5), atol=1e-8, rtol=0)
    softness = 1e4
    soft, _ = Support(low, high, softness)(inside)
    torch.testing.assert_close(soft / softness, inside.logit(), atol=1e-4, rtol=0)


def test_a_constant_parameter_keeps_the_scale_one():
    theta = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    support = Support(torch.full((2,), -inf), torch.full((2,), inf)).standardize(theta)
    assert support.scale[1] == 1
    assert support(theta)[0].isfinite().all()


def test_points_on_or_beyond_a_bound_stay_finite():
    support = Support(torch.zeros(1), torch.ones(1))
    for theta in (0.0, 1.0, 1.5, -3.0):
        u, log_det = support(torch.tensor([[theta]]))
        assert u.isfinite().all()
        assert log_det.isfinite().all()


def test_an_unmappable_support_falls_back_with_a_warning():
    prior = Dirichlet(torch.ones(3))
    with pytest.warns(UserWarning, match="not a product of intervals"):
        support = support_of(prior, prior.sample((10,)))
    assert support.low.isinf().all()


def test_without_a_prior_parameters_are_standardised():
    support = support_of(None, torch.randn(10, 2))
    assert support.low.isinf().all()
    assert support.high.isinf().all()


@pytest.mark.parametrize(
    ("low", "high"),
    [(torch.zeros(2), torch.ones(3)), (torch.ones(2), torch.zeros(2))],
)
def test_bad_bounds_are_named(low, high):
    with pytest.raises(ValueError, match="`low` and `high`"):
        Support(low, high)


@pytest.mark.parametrize("name", PRIORS)
def test_its_state_can_be_saved_and_loaded(name):
    theta = PRIORS[name].sample((50,))
    support = support_of(PRIORS[name], theta)
    other = support_of(PRIORS[name], 2 * theta)
    other.load_state_dict(support.state_dict())
    torch.testing.assert_close(other(theta), support(theta))


def test_single_precision_close_to_a_bound_at_zero():
    """As close to zero as float32 resolves, and it resolves 1e-38 there."""
    support = Support(torch.zeros(1), 1000 * torch.ones(1))
    u = torch.linspace(-5.0, 1.5, 50).unsqueeze(-1)
    theta, log_det = support.inverse(u)
    back, log_det_back = support(theta)
    inside = theta[:, 0] > 1e-4
    torch.testing.assert_close(back[inside], u[inside], atol=1e-2, rtol=0)
    torch.testing.assert_close(log_det_back[inside], log_det[inside], atol=0.1, rtol=0)


def test_a_mixture_of_normals_is_unbounded():
    mixture = MixtureSameFamily(
        Categorical(torch.ones(2)), MultivariateNormal(torch.zeros(2, 2), torch.eye(2))
    )
    support = support_of(mixture, mixture.sample((10,)))
    assert support.is_exact
    assert support.low.isinf().all()


def through(base, *transforms):
    return Independent(TransformedDistribution(base, list(transforms)), 1)


def log_uniform(low, high):
    return through(Uniform(low * torch.ones(2), high * torch.ones(2)), ExpTransform())


BOUNDED = {
    "log-uniform": (log_uniform(-6.0, 0.0), math.exp(-6), 1.0, True),
    "twelve decades": (log_uniform(-14.0, 14.0), math.exp(-14), math.exp(14), True),
    "reflected": (
        through(Uniform(0 * one, one), AffineTransform(1.0, -2.0)),
        -1.0,
        1.0,
        False,
    ),
    "logit-normal": (
        through(Normal(0 * one, one), SigmoidTransform(), AffineTransform(3.0, 2.0)),
        3.0,
        5.0,
        False,
    ),
    "log-normal": (through(Normal(0 * one, one), ExpTransform()), 0.0, inf, False),
    "two boxes": (
        MixtureSameFamily(
            Categorical(torch.ones(2)),
            Independent(Uniform(torch.tensor([[0.0], [2.0]]), 3.0), 1),
        ),
        0.0,
        3.0,
        False,
    ),
    "restricted": (
        RestrictedPrior(log_uniform(-6.0, 0.0), lambda t: t[..., 0] < 0.1, "rejection"),
        math.exp(-6),
        1.0,
        True,
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds_go_through_transforms_and_components(name):
    prior, low, high, is_log = BOUNDED[name]
    torch.manual_seed(0)
    theta = prior.sample((1_000,))
    support = support_of(prior, theta)
    assert support.is_exact
    dim = theta.shape[1]
    assert support.is_log.tolist() == [is_log] * dim
    assert support.low.tolist() == pytest.approx([low] * dim, rel=1e-4, abs=1e-6)
    assert support.high.tolist() == pytest.approx([high] * dim, rel=1e-4)
    u, log_det = support(theta)
    back, same = support.inverse(u)
    torch.testing.assert_close(back, theta, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(same, log_det, rtol=0, atol=1e-2)
    points = theta.double().requires_grad_()
    (slope,) = torch.autograd.grad(support.double()(points)[0].sum(), points)
    torch.testing.assert_close(
        support(points)[1].detach(), slope.log().sum(-1), rtol=0, atol=1e-6
    )
    far, _ = support.float().inverse(torch.tensor([[-50.0], [50.0]]).expand(2, dim))
    if name != "restricted":
        unchecked = with_true_support(prior)
        assert (unchecked.log_prob(far) > -inf).all()


def test_half_lines_are_unbent_and_never_overflow():
    support = Support(torch.tensor([0.0, -1.0, 0.0]), torch.tensor([inf, 1.0, inf]))
    theta = torch.tensor([[math.e, 0.5, 1.0]])
    torch.testing.assert_close(
        support.log_half_lines(theta), torch.tensor([[1.0, 0.5, 0.0]])
    )
    far, log_det = support.inverse(torch.tensor([[500.0, 3.0, -500.0]]))
    assert far.square().isfinite().all()
    assert log_det.isfinite().all()
