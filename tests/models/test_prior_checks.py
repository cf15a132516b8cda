"""Priors that can't serve are refused by the constructor, and others are not."""

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from sbi.utils.user_input_checks import process_prior
from torch.distributions import (
    Bernoulli,
    Dirichlet,
    Independent,
    LogisticNormal,
    Normal,
    Poisson,
    TransformedDistribution,
    Uniform,
    Wishart,
    biject_to,
    constraints,
)

from sbi_jeffreys import JNPE
from tests.small_trainings import new_trainer, quick, simulate

one = torch.ones(1)


class CustomPoisson:
    """A discrete prior that declares nothing."""

    mean = variance = 5 * torch.ones(2)

    def sample(self, sample_shape=()):
        return torch.poisson(self.mean.expand(*sample_shape, 2))

    def log_prob(self, theta):
        log_prob = (theta * self.mean.log() - 5 - torch.lgamma(theta + 1)).sum(-1)
        is_count = ((theta == theta.round()) & (theta >= 0)).all(-1)
        return torch.where(is_count, log_prob, -torch.inf)


@pytest.mark.filterwarnings("ignore:No prior bounds")
@pytest.mark.parametrize(
    ("prior", "match"),
    [
        (lambda: Independent(Poisson(torch.ones(2)), 1), "Poisson.*discrete"),
        (
            lambda: MultipleIndependent([Uniform(0 * one, one), Bernoulli(0.5 * one)]),
            "MultipleIndependent, which has discrete ones.*each value",
        ),
        (lambda: process_prior(CustomPoisson())[0], "zero next to 100% of its samples"),
        (lambda: Dirichlet(torch.ones(3)), r"Dirichlet on the simplex.*biject_to"),
        (lambda: LogisticNormal(torch.zeros(2), torch.ones(2)), "on the simplex"),
        (lambda: Wishart(torch.tensor(3.0), torch.eye(2)), "positive definite"),
        (lambda: Uniform(torch.zeros(2), torch.ones(2)), r"Independent\(prior, 1\)"),
    ],
)
def test_refused(prior, match):
    with pytest.raises(ValueError, match=match):
        JNPE(prior())


def test_the_check_draws_no_random_number():
    box, numbers = BoxUniform(-one, one), []
    for prior in (box, TransformedDistribution(box, [])):
        torch.manual_seed(0)
        JNPE(prior, show_progress_bars=False)
        numbers.append(torch.rand(()))
    assert numbers[0] == numbers[1]


def test_the_simplex_after_the_transform_that_the_message_names():
    simplex = Dirichlet(torch.ones(3))
    prior = TransformedDistribution(simplex, biject_to(constraints.simplex).inv)
    torch.manual_seed(0)
    trainer = new_trainer(prior, pool=False)
    theta = prior.sample((60,))
    trainer.append_simulations(theta, theta + 0.3 * torch.randn_like(theta))
    quick(trainer, max_num_epochs=1)
    for sample_with in ("direct", "energy"):
        posterior = trainer.build_posterior(sample_with=sample_with)
        samples = posterior.sample((50,), x=theta[:1], show_progress_bars=False)
        shares = biject_to(constraints.simplex)(samples)
        torch.testing.assert_close(shares.sum(-1), torch.ones(50))


@pytest.mark.parametrize("prior", [Uniform(0.0, 1.0), Normal(0.0, 1.0)])
def test_a_prior_over_one_number_serves_in_rounds_as_well(prior):
    """The prior itself, as `proposal`, is no other distribution."""
    torch.manual_seed(0)
    trainer = new_trainer(prior)
    for proposal in (None, prior):
        theta = prior.sample((60, 1))
        trainer.append_simulations(theta, simulate(theta), proposal)
    assert not trainer._simulations.is_sequential
    quick(trainer)
    posterior = trainer.build_posterior(sample_with="energy").set_default_x([0.4])
    theta = posterior.sample((60,))
    assert theta.shape == (60, 1)
    trainer.append_simulations(theta, simulate(theta), posterior)
    quick(trainer)
    assert trainer.build_posterior().sample((5,), x=[0.4]).shape == (5, 1)
