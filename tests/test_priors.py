"""Priors of many kinds: refused at once, or respected by samples and by densities."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.utils import BoxUniform, MultipleIndependent, RestrictedPrior
from sbi.utils.user_input_checks import process_prior
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
    Poisson,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    SigmoidTransform,
)

from sbi_jeffreys.models.building import PairBuilder
from sbi_jeffreys.models.transforms import ConditionalAffine
from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from sbi_jeffreys.posteriors.potential import NEXT_TO_BOUNDS
from sbi_jeffreys.preprocessing.true_support import TruePrior, with_true_support
from tests.small_trainings import ENERGY, SMALL, new_trainer

pytestmark = pytest.mark.usefixtures("validation")

one = torch.ones(1)
X_O = torch.tensor([[0.3]])


class Custom:
    """A normal density between bounds, as a class that declares wider ones or none."""

    def __init__(self, dim, scale, is_ordered):
        self.mean = torch.zeros(dim)
        self.variance = torch.full((dim,), scale**2)
        self.scale, self.is_ordered = scale, is_ordered

    def is_inside(self, theta):
        inside = (theta.abs() < 2 * self.scale).all(-1)
        return inside & ((theta.diff(dim=-1) > 0).all(-1) | (not self.is_ordered))

    def sample(self, sample_shape=()):
        size = (1_000, *sample_shape, len(self.mean))
        drawn = self.scale * torch.randn(size).clamp(-1.999, 1.999)
        if self.is_ordered:
            drawn = drawn.sort(-1).values
        return drawn[0]

    def log_prob(self, theta):
        log_prob = Normal(0.0, self.scale).log_prob(theta).sum(-1)
        return torch.where(self.is_inside(theta), log_prob, -math.inf)


def custom(dim, scale, declares, is_ordered=False):
    bounds = {}
    if declares:
        bounds = {
            f"{side}_bound": sign * 3 * scale * torch.ones(dim)
            for side, sign in (("lower", -1), ("upper", 1))
        }
    return process_prior(Custom(dim, scale, is_ordered), bounds)[0]


def mixture(dim, component, offsets, scale):
    parts = component(scale * offsets.unsqueeze(-1).expand(-1, dim), scale)
    return MixtureSameFamily(Categorical(torch.ones(len(offsets))), parts)


def normals(loc, scale):
    return Independent(Normal(loc, scale), 1)


def boxes(low, scale):
    return Independent(Uniform(low, low + scale), 1)


def transformed(base, *transforms):
    return TransformedDistribution(base, list(transforms))


scales = st.sampled_from([1e-6, 1e-2, 1.0, 30.0, 1e5])
offsets = st.sampled_from([-5.0, -0.5, 0.0, 20.0])

lines = st.one_of(
    st.builds(lambda s, o: Uniform(s * o * one, s * (o + 1) * one), scales, offsets),
    st.builds(lambda s: Gamma(2 * one, one / s), scales),
    st.builds(lambda s: LogNormal(math.log(s) * one, one), scales),
    st.builds(lambda s: Normal(0 * one, s * one), scales),
    st.builds(
        lambda a: transformed(Uniform(-a * one, one), ExpTransform()),
        st.sampled_from([0.0, 6.0, 14.0]),
    ),
    st.builds(
        lambda s, o: transformed(Beta(2 * one, one), AffineTransform(s * o, -s)),
        scales,
        offsets,
    ),
    st.builds(
        lambda s: transformed(
            Normal(0 * one, one), SigmoidTransform(), AffineTransform(-s, 2 * s)
        ),
        scales,
    ),
)
"""Distributions of one parameter, which make products."""


def restricted(prior):
    """A prior without the part in which the first parameter is above its median."""
    middle = prior.sample((1_001,))[:, 0].median()
    return RestrictedPrior(prior, lambda theta: theta[..., 0] < middle, "rejection")


whole = st.one_of(
    st.lists(lines, min_size=1, max_size=2).map(
        lambda parts: (
            process_prior(parts[0])[0] if len(parts) == 1 else MultipleIndependent(parts)
        )
    ),
    st.builds(custom, st.sampled_from([1, 2]), scales, st.booleans()),
    st.builds(lambda s, d: custom(2, s, d, is_ordered=True), scales, st.booleans()),
    st.builds(
        mixture,
        st.sampled_from([1, 2]),
        st.sampled_from([normals, boxes]),
        st.just(torch.tensor([-2.0, 1.5])),
        scales,
    ),
    st.builds(lambda s: BoxUniform(-s * torch.ones(2), s * torch.ones(2)), scales),
    st.just(MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))),
)
"""Distributions of one or two parameters."""

priors = st.one_of(whole, whole.map(restricted))


def make_posteriors(prior):
    """Posteriors of models that depend on x, without training."""
    theta = prior.sample((300,))
    pair = PairBuilder(SMALL, ENERGY, num_energies=1)(theta, torch.randn(300, 1), prior)
    for module in pair.flow.modules():
        if isinstance(module, ConditionalAffine):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    prior = with_true_support(prior)
    return FlowPosterior(pair.eval().flow, prior), EnergyPosterior(pair, prior)


def away_from_margins(flow, theta):
    """Whether the density at θ is that of the flow, and not that farther inside."""
    moved = flow.support.away_from_bounds(theta, NEXT_TO_BOUNDS)
    return (moved == theta).all(-1)


@pytest.mark.filterwarnings("ignore")
@given(priors, st.integers(0, 1_000))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_samples_are_inside_and_the_density_is_normalised(prior, seed):
    """Six standard errors of two shares of draws, and the error of the grid."""
    torch.manual_seed(seed)
    new_trainer(prior)
    posterior, corrected = make_posteriors(prior)
    density = posterior.prior
    density = density.prior if isinstance(density, TruePrior) else density
    options = {"norm_restricted_prior": False} if type(density) is RestrictedPrior else {}

    num = 40_000
    samples = posterior.sample((num,), x=X_O, show_progress_bars=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = corrected.sample((50,), x=X_O, show_progress_bars=False)
    for drawn in (samples, few):
        assert (density.log_prob(drawn, **options) > -math.inf).all()

    flow, dim = posterior.posterior_estimator, samples.shape[1]
    steps = 4_001 if dim == 1 else 301
    line = torch.linspace(-9.0, 9.0, steps)
    u = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    theta, log_slope = flow.support.inverse(u)
    log_prob = posterior.log_prob(
        theta, x=X_O, leakage_correction_params={"num_rejection_samples": num}
    )
    outside = ~(density.log_prob(theta, **options) > -math.inf)
    assert log_prob[outside].isneginf().all()
    inner = away_from_margins(flow, theta)
    cell = (18.0 / (steps - 1)) ** dim
    mass = float(((log_prob - log_slope).exp() * inner).double().sum() * cell)
    share = float(away_from_margins(flow, samples).float().mean())
    acceptance = float(posterior.leakage_correction(X_O, num))
    error = math.sqrt((1 - acceptance) / (acceptance * num) + 0.25 / num)
    assert mass == pytest.approx(share, abs=6 * error + 0.01)


@pytest.mark.parametrize(
    "prior",
    [
        Dirichlet(torch.ones(2)),
        Independent(Poisson(torch.ones(2)), 1),
        MultipleIndependent([Uniform(0 * one, one), Poisson(one)]),
    ],
)
def test_others_are_refused_by_the_constructor(prior):
    with pytest.raises(ValueError, match="Expected a `prior`"):
        new_trainer(prior)
