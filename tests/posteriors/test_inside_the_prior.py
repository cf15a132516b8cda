"""No sample is where the prior's density is zero, though its `support` contains it."""

import math
import pickle
import warnings

import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.utils import BoxUniform, RestrictedPrior
from sbi.utils.user_input_checks import process_prior
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import ExpTransform

from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from tests.small_trainings import make_trainer

pytestmark = pytest.mark.usefixtures("validation")

MCMC = MCMCPosteriorParameters(
    warmup_steps=2, num_chains=20, thin=1, init_strategy="proposal"
)
BOX = BoxUniform(torch.zeros(2), torch.ones(2))


class Ordered:
    """Uniform where 0 < a < b < 1."""

    mean, variance = torch.tensor([1 / 3, 2 / 3]), torch.full((2,), 1 / 18)

    def sample(self, sample_shape=()):
        return torch.rand(*sample_shape, 2).sort(-1).values

    def log_prob(self, theta):
        first, last = theta.unbind(-1)
        inside = (first > 0) & (first < last) & (last < 1)
        return torch.where(inside, math.log(2.0), -math.inf)


def is_below_the_diagonal(theta):
    return theta.sum(-1) < 1


def log_uniform():
    base = Uniform(torch.full((2,), -6.0), torch.zeros(2))
    return Independent(TransformedDistribution(base, [ExpTransform()]), 1)


def ordered():
    bounds = {"lower_bound": torch.zeros(2), "upper_bound": torch.ones(2)}
    return process_prior(Ordered(), bounds)[0]


def restricted():
    return RestrictedPrior(BOX, is_below_the_diagonal, sample_with="rejection")


def two_boxes():
    low = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    return MixtureSameFamily(
        Categorical(torch.ones(2)), Independent(Uniform(low, low + 1), 1)
    )


INSIDE = {
    log_uniform: lambda t: ((t >= math.exp(-6)) & (t <= 1)).all(-1),
    ordered: lambda t: (t[..., 0] > 0) & (t[..., 0] < t[..., 1]) & (t[..., 1] < 1),
    restricted: lambda t: (t > 0).all(-1) & (t.sum(-1) < 1),
    two_boxes: lambda t: ((t >= 0) & (t <= 1)).all(-1) | ((t >= 2) & (t <= 3)).all(-1),
}


@pytest.fixture(scope="module", params=list(INSIDE), ids=lambda make: make.__name__)
def case(request):
    """A prior, what is inside of it, and a trainer after two epochs."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer = make_trainer(request.param(), pool=False)
        trainer.train(training_batch_size=50, max_num_epochs=2)
    said = any("zero inside of its `support`" in str(w.message) for w in warned)
    assert said == (request.param is not log_uniform)
    x = trainer.get_simulations()[1][:3]
    return trainer, INSIDE[request.param], x


@pytest.mark.filterwarnings("ignore:Pareto k", "ignore:x is unlike")
@pytest.mark.parametrize("sample_with", ["direct", "energy"])
def test_samples_modes_and_densities(case, sample_with):
    trainer, inside, x = case
    torch.manual_seed(0)
    posterior = pickle.loads(
        pickle.dumps(trainer.build_posterior(sample_with=sample_with))
    )
    samples = posterior.sample_batched((2_000,), x, show_progress_bars=False)
    assert inside(samples).all()
    one = posterior.sample((500,), x=x[:1], show_progress_bars=False)
    assert inside(one).all()
    posterior.set_default_x(x[:1])
    for num_iter in (1, 30):
        mode = posterior.map(
            num_iter=num_iter,
            num_to_optimize=5,
            num_init_samples=20,
            learning_rate=0.1,
            force_update=True,
        )
        assert inside(mode).all()
    theta = 4 * torch.rand(5_000, 2) - 0.5
    log_prob = posterior.log_prob(theta, x=x[:1])
    assert torch.equal(log_prob.isfinite(), inside(theta))
    both = posterior.log_prob_batched(theta[:100, None].expand(-1, 3, -1), x)
    assert torch.equal(both.isfinite(), inside(theta[:100, None]).expand(-1, 3))
    report = posterior.agreement(x, num_samples=500)
    assert report.kl_flow_energy.isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("sample_with", "parameters"),
    [
        ("energy", MCMC),
        ("mcmc", MCMC),
        ("energy", RejectionPosteriorParameters()),
        ("energy", ImportanceSamplingPosteriorParameters()),
        ("energy", VIPosteriorParameters()),
        ("vi", VIPosteriorParameters()),
    ],
)
def test_sbis_samplers(case, sample_with, parameters):
    trainer, inside, x = case
    torch.manual_seed(0)
    posterior = trainer.build_posterior(
        sample_with=sample_with, posterior_parameters=parameters
    ).set_default_x(x[:1])
    if isinstance(parameters, VIPosteriorParameters):
        posterior.train(
            max_num_iters=5,
            warm_up_rounds=2,
            n_particles=32,
            show_progress_bar=False,
            quality_control=False,
        )
    samples = posterior.sample((60,), show_progress_bars=False)
    assert inside(samples).all()
    if isinstance(parameters, VIPosteriorParameters):
        theta = 4 * torch.rand(1_000, 2) - 0.5
        assert posterior.log_prob(theta)[~inside(theta)].isneginf().all()


@pytest.mark.filterwarnings("ignore:Pareto k", "ignore:x is unlike")
def test_several_observations(case):
    trainer, inside, x = case
    torch.manual_seed(0)
    posterior = trainer.build_posterior(sample_with="energy")
    samples = posterior.sample((500,), x=x, show_progress_bars=False)
    assert inside(samples).all()
    theta = 4 * torch.rand(500, 2) - 0.5
    log_prob = posterior.log_prob(theta, x=x, num_normalizer_samples=1_000)
    assert torch.equal(log_prob.isfinite(), inside(theta))


def test_the_prior_of_a_posterior_may_be_restricted_later(trained):
    """It is narrower than that of the training, which has exact bounds."""
    box = trained.prior
    torch.manual_seed(0)
    prior = RestrictedPrior(box, is_below_the_diagonal, sample_with="rejection")
    for sample_with in ("direct", "energy"):
        posterior = trained.build_posterior(prior=prior, sample_with=sample_with)
        samples = posterior.sample((500,), x=torch.zeros(1, 2), show_progress_bars=False)
        assert is_below_the_diagonal(samples).all()


def test_parameters_outside_are_refused():
    trainer = make_trainer(ordered(), pool=False)
    theta = torch.tensor([[0.7, 0.2], [0.1, 0.9]])
    with pytest.raises(ValueError, match=r"1 of 2 `theta` are outside"):
        trainer.append_simulations(theta, theta)


def test_rejection_can_be_switched_off_and_its_rate_is_reported(case):
    trainer, inside, x = case
    torch.manual_seed(0)
    posterior = trainer.build_posterior()
    assert type(posterior) is FlowPosterior
    rates = posterior.leakage_correction(x)
    samples = posterior.sample_batched(
        (4_000,), x, show_progress_bars=False, reject_outside_prior=False
    )
    error = 6 * (rates * (1 - rates) / 4_000 + 1e-9).sqrt()
    assert ((inside(samples).float().mean(0) - rates).abs() < error).all()
