"""Networks are in single precision, whatever torch's default and the data are in."""

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_jeffreys import JNPE, JeffreysDensityEstimator
from tests.small_trainings import new_trainer, simulate


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained_on_double(**options):
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2).double(), torch.ones(2).double())
    theta = prior.sample((120,))
    trainer = new_trainer(prior, **options)
    trainer.append_simulations(theta, simulate(theta))
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=3)
    return trainer


def assert_single_and_finite(trainer):
    for model in (trainer.flow, trainer.energy):
        tensors = [*model.parameters(), *model.buffers()]
        assert not any(t.dtype == torch.float64 for t in tensors)
    x, theta = torch.zeros(3, 2), torch.zeros(3, 2)
    for kind in ("direct", "energy"):
        posterior = trainer.build_posterior(sample_with=kind)
        for result in (
            posterior.sample((5,), x=x[:1]),
            posterior.sample_batched((5,), x=x),
            posterior.log_prob(theta, x=x[:1]),
            posterior.log_prob_batched(theta, x),
            posterior.set_default_x(x[:1]).map(num_iter=3, num_init_samples=20),
        ):
            assert result.dtype == torch.float32
            assert result.isfinite().all()
    joint = posterior.sample((5,), x=x)
    assert joint.dtype == torch.float32
    assert posterior.log_prob(joint, x=x, num_normalizer_samples=500).isfinite().all()


@pytest.mark.parametrize("density_estimator", ["nsf", "maf", "zuko_nsf"])
def test_trains_and_samples_where_torch_is_in_double(
    double_by_default, density_estimator
):
    assert_single_and_finite(trained_on_double(density_estimator=density_estimator))


def test_trains_and_samples_with_a_prior_and_data_in_double():
    assert_single_and_finite(trained_on_double())


def test_an_embedding_in_double_is_made_single(double_by_default):
    net = torch.nn.Linear(2, 3)
    trainer = JNPE(embedding_net=net, pool=False, show_progress_bars=False)
    trainer.append_simulations(torch.randn(60, 2), torch.randn(60, 2))
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=1)
    assert net.weight.dtype == torch.float32


def test_rounds_and_densities_where_torch_is_in_double(double_by_default):
    trainer = trained_on_double(pool=False)
    proposal = trainer.build_posterior(sample_with="energy").set_default_x(torch.zeros(2))
    theta = proposal.sample((60,))
    trainer.append_simulations(theta, simulate(theta), proposal)
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=2)
    assert trainer.build_posterior().sample((5,), x=torch.zeros(2)).isfinite().all()
    estimator = JeffreysDensityEstimator(show_progress_bars=False)
    with pytest.warns(UserWarning, match="max_num_epochs"):
        estimator.fit(torch.randn(100, 2), max_num_epochs=2)
    assert estimator.log_prob(torch.zeros(4, 2)).isfinite().all()
