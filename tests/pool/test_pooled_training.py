"""Training goes on as without the pool, and the flow follows the pooled energy."""

import pickle
from copy import deepcopy

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn
from torch.utils.data.dataloader import default_collate

from sbi_jeffreys import JNPE
from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.data.batches import SlicedBatches
from sbi_jeffreys.pool import exponential_family
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.opinion_pool import Pool
from sbi_jeffreys.pool.registry import POOL_MODELS
from sbi_jeffreys.pool.synthetic_likelihood import ensemble, errors
from sbi_jeffreys.training.loop import JeffreysTraining


@pytest.fixture(autouse=True)
def one_error_model(monkeypatch):
    """How the synthetic likelihood chooses its errors has tests of its own."""
    monkeypatch.setattr(errors, "ERROR_MODELS", (errors.CORRELATED,))


def make_trainer(dim=2, **options):
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(dim), 2 * torch.ones(dim))
    theta = prior.sample((300,))
    trainer = JNPE(prior, show_progress_bars=False, **options)
    return trainer.append_simulations(theta, theta + 0.3 * torch.randn(300, dim))


@pytest.fixture
def trainer():
    return make_trainer()


def test_training_goes_on_as_if_there_were_no_pool(trainer):
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=3)
    names = [f"{model}_weight" for model in POOL_MODELS]
    assert sum(trainer.summary[name][0] for name in names) > 0
    assert isinstance(trainer.energy.net, Pool)
    assert not isinstance(trainer.latest.energy.net, Pool)
    copy = pickle.loads(pickle.dumps(trainer))
    for one in (trainer, copy):
        with pytest.warns(UserWarning, match="max_num_epochs"):
            one.train(max_num_epochs=5, resume_training=True)
    losses = trainer.summary["validation_loss"], copy.summary["validation_loss"]
    assert losses[0] == losses[1]
    assert [len(trainer.summary[name]) for name in names] == [2, 2, 2]
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=1, force_first_round_loss=True)
    assert not isinstance(trainer.energy.net.net, Pool)


@pytest.mark.parametrize("problem", [torch.linalg.LinAlgError, KeyboardInterrupt])
def test_a_training_outlives_models_that_cannot_be_fitted(trainer, monkeypatch, problem):
    def fails(candidates, earlier):
        raise problem

    monkeypatch.setattr(LinearModel, "fit", fails)
    with (
        pytest.warns(UserWarning, match=f"could not be pooled.*{problem.__name__}"),
        pytest.warns(UserWarning, match="max_num_epochs"),
    ):
        trainer.train(max_num_epochs=2)
    assert trainer.energy.net is trainer._fit.networks.energy.net
    assert trainer.summary["linear_model_weight"] == [0.0]
    trainer.build_posterior(sample_with="energy")


def test_models_that_do_not_know_the_weights_of_simulations_are_not_fitted(trainer):
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=3, calibration_kernel=lambda x: torch.ones(len(x)))
    assert trainer.energy is trainer._fit.networks.energy


def test_batches_that_are_not_the_simulations_are_not_pooled(trainer):
    def noisy(rows):
        theta, x, mask = default_collate(rows)
        return theta, x + 0.3 * torch.randn_like(x), mask

    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=3, dataloader_kwargs={"collate_fn": noisy})
    assert trainer.energy is trainer._fit.networks.energy
    assert trainer.summary["linear_model_weight"] == [0.0]
    assert (
        trainer.summary["followed_validation_loss"]
        == trainer.summary["best_validation_loss"]
    )


@pytest.mark.full_fits
def test_both_posteriors_know_the_pool(trainer, monkeypatch):
    monkeypatch.setattr(ensemble, "MAX_STEPS", 300)
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=3)
    x_o = torch.zeros(1, 2)
    flow = trainer.build_posterior()
    corrected = trainer.build_posterior(sample_with="energy")
    torch.manual_seed(0)
    samples = corrected.sample((4000,), x=x_o, show_progress_bars=False)
    exact = 0.3  # the standard deviation, far from the prior's edges
    assert samples.std(0) == pytest.approx([exact, exact], rel=0.1)
    torch.manual_seed(0)
    of_flow = flow.agreement(x_o)
    torch.manual_seed(0)
    assert of_flow.log_z == corrected.agreement(x_o).log_z


@pytest.mark.slow
def test_the_flow_follows_the_pool_once_training_stalls_and_keeps_what_it_gained():
    trainer = make_trainer(dim=6)
    flow = trainer.train(stop_after_epochs=40)
    energy, state = trainer.energy, trainer._fit.training
    theta, x = (values[trainer.val_indices] for values in trainer.get_simulations()[:2])
    nll = float(-flow.log_prob(theta[None], x)[0].detach().mean())
    (followed_loss,) = trainer.summary["followed_validation_loss"]
    (best,) = trainer.summary["best_validation_loss"]
    assert nll == pytest.approx(followed_loss, abs=1e-5)
    assert followed_loss < best == min(trainer.summary["validation_loss"])
    assert len(trainer.summary["validation_loss"]) == trainer.epoch == state.epoch
    kept = state.best_weights
    for name, value in trainer._fit.networks.energy.state_dict().items():
        assert torch.equal(value, kept[f"energy.{name}"])
    assert any(
        not torch.equal(value, kept[f"flow.{name}"])
        for name, value in flow.state_dict().items()
    )
    assert energy.net.net is trainer._fit.networks.energy.net

    followed = deepcopy(flow.state_dict())
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(
            resume_training=True, stop_after_epochs=100, max_num_epochs=state.epoch + 1
        )
    assert trainer.summary["followed_validation_loss"] == [followed_loss] * 2
    for name, value in flow.state_dict().items():
        assert torch.equal(value, followed[name])


@pytest.mark.slow
def test_what_following_gained_is_kept_by_a_call_that_does_not_pool(monkeypatch):
    """The flow has changed the embedding that it shared with the energy's networks. The
    energy that is kept has the embedding of its own networks."""
    trainer = make_trainer(dim=6, embedding_net=nn.Linear(6, 6))
    flow = trainer.train(stop_after_epochs=40)
    (loss,) = trainer.summary["followed_validation_loss"]
    followed = deepcopy(flow.state_dict())
    monkeypatch.setattr(
        "sbi_jeffreys.fit.fit_pool",
        lambda pair, *_: (pair.energy, dict.fromkeys(POOL_MODELS, 0.0)),
    )
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(resume_training=True, max_num_epochs=trainer.epoch + 1)
    assert trainer.summary["followed_validation_loss"] == [loss, loss]
    kept = trainer._fit.training.best_weights
    assert trainer.energy.net is trainer._fit.networks.energy.net
    for name, value in trainer.energy.state_dict().items():
        assert torch.equal(value, kept[f"energy.{name}"])
    for name, value in flow.state_dict().items():
        assert torch.equal(value, followed[name])


@pytest.mark.slow
def test_following_does_not_change_how_training_goes_on():
    plain = make_trainer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JeffreysTraining, "follow", lambda self, *_, **__: self.best_loss)
        plain.train(stop_after_epochs=10)
        more = plain.epoch + 5
        with pytest.warns(UserWarning, match="max_num_epochs"):
            plain.train(resume_training=True, max_num_epochs=more)
    followed = make_trainer()
    followed.train(stop_after_epochs=10)
    with pytest.warns(UserWarning, match="max_num_epochs"):
        followed.train(resume_training=True, max_num_epochs=more)
    assert followed.summary["validation_loss"] == plain.summary["validation_loss"]


def follow(trainer, energy, **options):
    batches = [
        SlicedBatches(
            *(ConcatenatedRows([values]) for values in trainer.get_simulations()[:2]),
            rows,
            100,
            False,
            lambda x: torch.ones(len(x)),
            "cpu",
        )
        for rows in (trainer.train_indices, trainer.val_indices)
    ]
    defaults = {
        "max_num_epochs": 5,
        "stop_after_epochs": 5,
        "clip_max_norm": 5.0,
        "show_progress": False,
    }
    return trainer._fit.training.follow(energy, *batches, **{**defaults, **options})


def test_an_energy_that_is_followed_stays_as_it_is():
    """It has no dropout, and its batch norm keeps the statistics of its training."""
    trainer = make_trainer(embedding_net=nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=3)
    energy = deepcopy(trainer.energy).train()
    modes = set()
    for module in energy.modules():
        module.register_forward_hook(lambda module, *_: modes.add(module.training))
    before = deepcopy(energy.state_dict())
    follow(trainer, energy)
    assert modes == {False}
    for name, value in energy.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.fixture(scope="module")
def pickled():
    """A trainer after ten epochs, and a pool that is fitted in a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "ERROR_MODELS", (errors.CORRELATED,))
        patch.setattr(ensemble, "MAX_STEPS", 20)
        patch.setattr(exponential_family, "MAX_ITERATIONS", 20)
        trainer = make_trainer()
        with pytest.warns(UserWarning, match="max_num_epochs"):
            trainer.train(max_num_epochs=10)
    return pickle.dumps(trainer)


@pytest.fixture
def trained(pickled):
    return pickle.loads(pickled)


def test_a_worse_energy_is_not_followed(trained):
    flow = trained.flow
    before = deepcopy(flow.state_dict())
    wrong = deepcopy(trained.energy)
    wrong.loc += 1.0
    assert follow(trained, wrong) == trained._fit.training.best_loss
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_energy_that_is_not_finite_is_not_followed(trained):
    flow = trained.flow
    before = deepcopy(flow.state_dict())
    broken = deepcopy(trained.energy)
    broken.scale *= torch.nan
    with pytest.warns(UserWarning, match="The flow stays as it was"):
        assert follow(trained, broken) == trained._fit.training.best_loss
    assert not flow.training
    assert all(parameter.grad is None for parameter in flow.parameters())
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])
