"""Configurations of estimators, and changes of posteriors, on sbi's main branch."""

import math
import pickle

import pytest
import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import nn

from sbi_jeffreys import JNPE, JeffreysDensityEstimator
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from tests import next_sbi
from tests.small_trainings import BOX, make_trainer, quick, same_weights

QUIET = {"show_progress_bars": False}
CHAINS = MCMCPosteriorParameters(num_chains=2, warmup_steps=2, thin=1)
NARROW = BoxUniform(-0.9 * torch.ones(2), 0.9 * torch.ones(2))
"""A prior for which the flow's samples need sbi's rejection."""


def trained_with(density_estimator, **options):
    trainer = make_trainer(density_estimator=density_estimator, pool=False, **options)
    return trainer, quick(trainer, max_num_epochs=1)


@pytest.mark.parametrize("name", next_sbi.CONFIGS)
def test_a_configuration_gives_the_flow_that_its_builder_gives(name):
    config = next_sbi.CONFIGS[name](hidden_features=8)
    _, want = trained_with(posterior_nn(name, hidden_features=8))
    trainer, got = trained_with(config)
    assert same_weights(got, want)
    for kind in ("direct", "energy"):
        posterior = trainer.build_posterior(sample_with=kind)
        assert posterior.sample((5,), x=torch.zeros(1, 2)).isfinite().all()


def test_a_trainer_with_a_configuration_can_be_pickled():
    config = next_sbi.CONFIGS["maf"](hidden_features=8)
    trainer = make_trainer(density_estimator=config, pool=False)
    with pytest.warns(UserWarning, match="tracker"):
        copy = pickle.loads(pickle.dumps(trainer))
    flows = []
    for one in (trainer, copy):
        torch.manual_seed(1)
        flows.append(quick(one, max_num_epochs=1))
    assert same_weights(*flows)


def test_the_embedding_of_a_configuration_serves_the_energy_too():
    net = nn.Linear(2, 3)
    trainer, flow = trained_with(next_sbi.CONFIGS["nsf"](embedding_net=net))
    assert flow.embedding_net(torch.zeros(4, 2)).shape == (4, 3)
    assert trainer.energy.embedding_net(torch.zeros(4, 2)).shape == (4, 3)
    with pytest.raises(ValueError, match="`embedding_net` only with a named"):
        JNPE(BOX, next_sbi.CONFIGS["nsf"](), embedding_net=net)


def test_none_is_the_flow_of_this_package():
    flows = [trained_with(choice)[1] for choice in (None, "nsf")]
    assert same_weights(*flows)
    estimator = JeffreysDensityEstimator(density_estimator=None)
    assert estimator._trainer is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (next_sbi.CONFIGS["nsf"], r"got the class NSFConfig\. Write `NSFConfig\(\)`"),
        (next_sbi.UNCONDITIONAL(), r"take `batch_input` .* of MarginalNSFConfig does"),
        (nn.Linear(2, 2), "got a Linear"),
        (3, "got a int"),
    ],
)
def test_what_is_no_flow_is_refused_by_name(given, message):
    with pytest.raises(TypeError, match=f"Expected `density_estimator.*{message}"):
        JNPE(BOX, given)


def test_a_configuration_of_what_cannot_be_trained_is_refused_before_training():
    trainer = make_trainer(density_estimator=next_sbi.UNTRAINABLE())
    with pytest.raises(TypeError, match="differentiably"):
        trainer.train()


@pytest.fixture
def changed(monkeypatch):
    next_sbi.change(monkeypatch)


@pytest.mark.usefixtures("changed")
def test_posteriors_are_built_though_their_parameters_have_a_new_field(trained):
    posterior = trained.build_posterior()
    assert type(posterior) is FlowPosterior
    parameters = next_sbi.NextParameters(
        max_sampling_batch_size=7, enable_transform=False, check_finite_x=False
    )
    posterior = trained.build_posterior(posterior_parameters=parameters)
    assert type(posterior) is FlowPosterior
    assert posterior.max_sampling_batch_size == 7
    assert not posterior.enable_transform


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize("kind", ["direct", "energy"])
def test_no_argument_that_sbi_will_remove_is_needed(trained, kind):
    posterior = trained.build_posterior(sample_with=kind).set_default_x(torch.zeros(2))
    assert posterior.map(num_iter=3, num_init_samples=20).shape == (1, 2)
    with pytest.raises(TypeError, match="mcmc_method"):
        trained.build_posterior(mcmc_method="slice_np")


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["direct", "energy"])
def test_x_is_checked_though_sbi_does_not(trained, kind, bad):
    posterior = trained.build_posterior(sample_with=kind)
    x = torch.tensor([[0.0, 0.0], [0.0, bad]])
    theta = torch.zeros(3, 2)
    for call in (
        lambda: posterior.sample((3,), x=x[1:]),
        lambda: posterior.sample_batched((3,), x),
        lambda: posterior.log_prob(theta, x=x[1:]),
        lambda: posterior.log_prob_batched(theta[:2], x),
        lambda: posterior.potential(theta, x=x[1:]),
        lambda: posterior.potential_fn.set_x(x[1:]),
        lambda: posterior.set_default_x(x[1:]),
        lambda: posterior.agreement(x),
    ):
        with pytest.raises(ValueError, match=r"Expected an? .*observation `x`"):
            call()


def test_x_is_checked_where_sbi_samples(trained):
    """sbi's rejection would never end, and its chains would start nowhere."""
    x = torch.tensor([[0.0, 0.0], [0.0, math.nan]])
    rejection = DirectPosterior(trained.flow, NARROW)
    chains = trained.build_posterior(sample_with="energy", posterior_parameters=CHAINS)
    for call in (
        lambda: rejection.sample_batched((3,), x, **QUIET),
        lambda: rejection.log_prob_batched(torch.zeros(3, 2, 2), x),
        lambda: chains.sample_batched((3,), x, **QUIET),
    ):
        with pytest.raises(ValueError, match=r"`x` without NaN, got NaN in \d of \d"):
            call()
