"""`build_posterior`: copies, sbi's samplers on the flow, and the energy's embedding."""

import io
import pickle

import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from torch import nn

from tests.small_trainings import make_trainer, quick


def test_posteriors_and_energy_can_be_pickled(trained):
    x_o = torch.zeros(1, 2)
    posterior = pickle.loads(pickle.dumps(trained.build_posterior()))
    assert posterior.sample((3,), x=x_o, show_progress_bars=False).shape == (3, 2)
    energy = pickle.loads(pickle.dumps(trained.energy))
    theta = torch.zeros(4, 1, 2)
    torch.testing.assert_close(energy(theta, x_o), trained.energy(theta, x_o))


@pytest.mark.parametrize("sample_with", ["mcmc", "rejection", "vi", "importance"])
def test_sbis_other_posteriors_on_the_flow(trained, sample_with):
    parameters = {}
    if sample_with == "mcmc":
        parameters["posterior_parameters"] = MCMCPosteriorParameters(
            warmup_steps=2, num_chains=2, thin=1
        )
    posterior = trained.build_posterior(sample_with=sample_with, **parameters)
    posterior.set_default_x(torch.zeros(1, 2))
    if sample_with == "vi":
        posterior.train(max_num_iters=5, show_progress_bar=False)
    assert posterior.sample((4,), show_progress_bars=False).shape == (4, 2)


def test_posteriors_have_the_energys_embedding_though_it_has_no_weights():
    class Square(nn.Module):
        def forward(self, x):
            return x.square()

    class Net(nn.Module):
        """A log-ratio network that does not start at zero."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 1)

        def forward(self, input, condition):
            condition = condition.expand(*input.shape[:-1], -1)
            return self.head(torch.cat([input, condition], -1)).squeeze(-1)

    trainer = make_trainer(
        density_estimator="nsf",
        embedding_net=nn.Flatten(),
        energy_embedding_net=Square(),
        energy_net=Net(),
    )
    quick(trainer, max_num_epochs=1)
    posterior = trainer.build_posterior(sample_with="energy")
    theta, x = (values[:5] for values in trainer.get_simulations()[:2])
    want = trainer.energy(theta[None], x)
    assert torch.equal(posterior.pair.energy(theta[None], x), want)


@pytest.mark.parametrize("sample_with", ["direct", "energy"])
def test_a_posterior_forgets_the_simulations_that_it_holds(trained, sample_with):
    """All else stays the same."""

    class Shapes(pickle.Pickler):
        def __init__(self):
            super().__init__(io.BytesIO())
            self.found = set()

        def reducer_override(self, value):
            if isinstance(value, torch.Tensor):
                self.found.add(tuple(value.shape))
            return NotImplemented

    def shapes():
        pickler = Shapes()
        pickler.dump(posterior)
        return pickler.found

    def sample():
        torch.manual_seed(0)
        return posterior.sample((20,), x=x_o, show_progress_bars=False)

    posterior, x_o = trained.build_posterior(sample_with=sample_with), torch.zeros(1, 2)
    rows = {tuple(posterior.novelty.landmarks.shape), posterior.novelty.distances.shape}
    before = sample()
    assert rows <= shapes()
    posterior.forget_simulations()
    assert posterior.novelty is None
    assert not rows & shapes()
    assert torch.equal(sample(), before)
    assert posterior.agreement(x_o).x_p_value is None
