"""Training goes on as without the pool, and the flow follows the pooled energy."""

import pickle
import warnings
from copy import deepcopy

import pytest
import torch
from sbi.utils import BoxUniform, RestrictedPrior
from torch import nn
from torch.utils.data.dataloader import default_collate

from sbi_jeffreys import JNPE, fit, stages
from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.data.batches import SlicedBatches
from sbi_jeffreys.pool import exponential_family
from sbi_jeffreys.pool.emulation import (
    NUM_BATCHES,
    EmulatedBatches,
    HalfSimulatedBatches,
)
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.opinion_pool import Pool, PoolFit
from sbi_jeffreys.pool.registry import POOL_MODELS
from sbi_jeffreys.pool.synthetic_likelihood import (
    SyntheticLikelihood,
    errors,
    folds,
    model,
)
from sbi_jeffreys.training.following import FollowingPair, Guide
from sbi_jeffreys.training.loop import JeffreysTraining
from sbi_jeffreys.training.step import PrimalDualStep
from tests.small_trainings import interrupted_at, same_weights


@pytest.fixture(autouse=True)
def one_error_model(monkeypatch):
    """How the synthetic likelihood chooses its errors has tests of its own."""
    monkeypatch.setattr(model, "error_models_for", lambda num: [errors.CORRELATED])


def make_trainer(dim=2, **options):
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(dim), 2 * torch.ones(dim))
    theta = prior.sample((300,))
    trainer = JNPE(prior, show_progress_bars=False, **options)
    return trainer.append_simulations(theta, theta + 0.3 * torch.randn(300, dim))


def quick(trainer, max_num_epochs=3, **arguments):
    """Train for a few epochs, whether it says that these were few or not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training stopped at")
        return trainer.train(max_num_epochs=max_num_epochs, **arguments)


@pytest.fixture
def trainer():
    return make_trainer()


def test_training_goes_on_as_if_there_were_no_pool(trainer):
    quick(trainer, 3)
    names = [f"{name}_weight" for name in POOL_MODELS]
    assert sum(trainer.summary[name][0] for name in names) > 0
    assert isinstance(trainer.energy.net, Pool)
    assert not isinstance(trainer.latest.energy.net, Pool)
    copy = pickle.loads(pickle.dumps(trainer))
    for one in (trainer, copy):
        quick(one, 5, resume_training=True)
    losses = trainer.summary["validation_loss"], copy.summary["validation_loss"]
    assert losses[0] == losses[1]
    assert [len(trainer.summary[name]) for name in names] == [2, 2, 2]
    quick(trainer, 1, force_first_round_loss=True)
    assert not isinstance(trainer.energy.net.net, Pool)


@pytest.mark.parametrize("problem", [torch.linalg.LinAlgError, KeyboardInterrupt])
def test_a_training_outlives_models_that_cannot_be_fitted(trainer, monkeypatch, problem):
    def fails(candidates, earlier, effort):
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
    quick(trainer, 3, calibration_kernel=lambda x: torch.ones(len(x)))
    assert trainer.energy.net is trainer._fit.networks.energy.net


@pytest.mark.parametrize("rows", [(11, 1), (1, 11)])
def test_nothing_is_pooled_with_a_single_pair_to_fit_or_to_choose(rows):
    """The error of a mean over one pair is unknown, and one pair can't be regressed."""
    trainer = make_trainer()
    rows = torch.arange(12).split(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sbi_jeffreys.stages.PoolFit", lambda *_: pytest.fail("pooled"))
        patch.setattr(trainer._simulations, "split", lambda *_: rows)
        with pytest.warns(UserWarning, match="max_num_epochs"):
            trainer.train(max_num_epochs=2, training_batch_size=1)
    assert trainer.energy.net is trainer._fit.networks.energy.net
    assert trainer.summary["linear_model_weight"] == [0.0]


def test_batches_that_are_not_the_simulations_are_not_pooled(trainer):
    def noisy(rows):
        theta, x, mask = default_collate(rows)
        return theta, x + 0.3 * torch.randn_like(x), mask

    quick(trainer, 3, dataloader_kwargs={"collate_fn": noisy})
    assert trainer.energy.net is trainer._fit.networks.energy.net
    assert trainer.summary["linear_model_weight"] == [0.0]
    assert (
        trainer.summary["followed_validation_loss"]
        == trainer.summary["best_validation_loss"]
    )


@pytest.mark.full_fits
def test_both_posteriors_know_the_pool(trainer, monkeypatch):
    monkeypatch.setattr(folds, "MAX_STEPS", 300)
    quick(trainer, 3)
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
    _, again = trainer.summary["followed_validation_loss"]
    assert again <= followed_loss
    is_kept = all(
        torch.equal(value, followed[name]) for name, value in flow.state_dict().items()
    )
    assert is_kept == (again == followed_loss)


@pytest.mark.slow
def test_what_following_gained_is_kept_by_a_call_that_does_not_pool():
    """The flow has changed the embedding that it shared with the energy's networks. The
    energy that is kept has the embedding of its own networks."""
    trainer = make_trainer(dim=6, embedding_net=nn.Linear(6, 6))
    flow = trainer.train(stop_after_epochs=40)
    (loss,) = trainer.summary["followed_validation_loss"]
    followed = deepcopy(flow.state_dict())
    trainer._fit.pool = ()
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(resume_training=True, max_num_epochs=trainer.epoch + 1)
    assert trainer.summary["followed_validation_loss"] == [loss, loss]
    kept = trainer._fit.training.best_weights
    assert trainer.energy.net is trainer._fit.networks.energy.net
    for name, value in trainer.energy.state_dict().items():
        assert torch.equal(value, kept[f"energy.{name}"])
    for name, value in flow.state_dict().items():
        assert torch.equal(value, followed[name])


def test_following_does_not_change_how_training_goes_on():
    plain = make_trainer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JeffreysTraining, "follow", lambda self, *_, **__: self.best_loss)
        quick(plain, 3)
        quick(plain, 6, resume_training=True)
    followed = make_trainer()
    quick(followed, 3)
    quick(followed, 6, resume_training=True)
    (best,) = {min(one.summary["validation_loss"][:3]) for one in (plain, followed)}
    assert followed.summary["followed_validation_loss"][0] < best
    assert followed.summary["validation_loss"] == plain.summary["validation_loss"]


def follow(trainer, energy):
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
    guide = Guide(energy, batches[0], False, False, 5)
    return trainer._fit.training.follow(guide, batches[1], 5.0, False)


def test_an_energy_that_is_followed_stays_as_it_is():
    """It has no dropout, and its batch norm keeps the statistics of its training."""
    trainer = make_trainer(embedding_net=nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    quick(trainer, 3)
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
        patch.setattr(model, "error_models_for", lambda num: [errors.CORRELATED])
        patch.setattr(folds, "MAX_STEPS", 20)
        patch.setattr(exponential_family, "MAX_ITERATIONS", 20)
        trainer = make_trainer()
        quick(trainer, 10)
    return pickle.dumps(trainer)


@pytest.fixture
def trained(pickled):
    return pickle.loads(pickled)


def test_a_worse_energy_is_not_followed(trained):
    flow = trained.flow
    before = deepcopy(flow.state_dict())
    wrong = deepcopy(trained.energy)
    wrong.loc += 1.0
    assert [follow(trained, wrong)] == trained.summary["followed_validation_loss"]
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_energy_that_is_not_finite_is_not_followed(trained):
    flow = trained.flow
    before = deepcopy(flow.state_dict())
    broken = deepcopy(trained.energy)
    broken.scale *= torch.nan
    with pytest.warns(UserWarning, match="The flow stays as it was"):
        assert [follow(trained, broken)] == trained.summary["followed_validation_loss"]
    assert not flow.training
    assert all(parameter.grad is None for parameter in flow.parameters())
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_the_pool_no_model_is_ever_fitted(monkeypatch):
    def fails(*_):
        raise AssertionError

    for kind in POOL_MODELS.values():
        monkeypatch.setattr(kind, "fit", fails)
    monkeypatch.delattr(stages, "PoolFit")
    monkeypatch.delattr(fit.Stages, "pool")
    monkeypatch.setattr(JeffreysTraining, "follow", fails)
    trainer = make_trainer(pool=False)
    quick(trainer)
    quick(trainer, 5, resume_training=True)
    assert trainer.energy.net is trainer._fit.networks.energy.net
    losses = trainer.summary["followed_validation_loss"]
    assert losses == trainer.summary["best_validation_loss"]


@pytest.fixture
def guides(monkeypatch):
    """What the flow follows."""
    seen, original = [], JeffreysTraining.follow

    def watched(training, guide, *arguments):
        seen.append(guide)
        return original(training, guide, *arguments)

    monkeypatch.setattr(JeffreysTraining, "follow", watched)
    return seen


@pytest.mark.parametrize(("most", "learn", "follow"), [(1, 1, 1), (8, 2, 2), (20, 4, 6)])
def test_few_epochs_of_the_networks_bound_all_that_follows(
    most, learn, follow, guides, monkeypatch
):
    """With n of 40 epochs there are n / 40 of all steps: of 15 sqrt(0.3) and 22 sqrt(0.3)
    epochs of emulated pairs, as there are 300 simulations, and of 120 steps of a fit.
    The flow follows even if held-out pairs are not likelier under the pool."""
    monkeypatch.setattr(PoolFit, "gain", 0.1)
    monkeypatch.setattr(stages, "FULL_EFFORT", 40)
    monkeypatch.setattr(stages, "EPOCHS_TO_LEARN", 15)
    monkeypatch.setattr(stages, "EPOCHS_TO_FOLLOW", 22)
    monkeypatch.setattr(folds, "MAX_STEPS", 120)
    monkeypatch.setattr(folds, "PATIENCE", 10**6)
    counts = {"following": 0, "fit": 0}
    step, take_step = PrimalDualStep.__call__, folds.FoldTraining._take_step

    def counted_step(self, *batch):
        counts["following"] += isinstance(self.pair, FollowingPair)
        step(self, *batch)

    def counted_fit(self):
        counts["fit"] += 1
        take_step(self)

    monkeypatch.setattr(PrimalDualStep, "__call__", counted_step)
    monkeypatch.setattr(folds.FoldTraining, "_take_step", counted_fit)
    trainer = make_trainer()
    quick(trainer, most)
    assert len(trainer.summary["validation_loss"]) == most
    assert [guide.num_epochs for guide in guides] == [learn, follow]
    assert counts["following"] == NUM_BATCHES * (learn + follow)
    is_continued = trainer.summary["synthetic_likelihood_weight"][0] > 0
    assert counts["fit"] == 3 * most + round(0.75 * most) * is_continued


def test_more_than_enough_epochs_make_no_effort_above_one(guides, monkeypatch):
    monkeypatch.setattr("sbi_jeffreys.training.schedule.MOST_EPOCHS", 2)
    monkeypatch.setattr("sbi_jeffreys.training.schedule.LEAST_EPOCHS", 1)
    monkeypatch.setattr(stages, "EPOCHS_TO_LEARN", 2 / 0.3**0.5)
    monkeypatch.setattr(stages, "EPOCHS_TO_FOLLOW", 3 / 0.3**0.5)
    monkeypatch.setattr(stages, "MIN_GAIN", 100.0)
    make_trainer().train(max_num_epochs=10**6)
    assert [guide.num_epochs for guide in guides] == [2, 3]


def test_beside_the_pool_the_networks_train_for_a_bounded_number_of_cycles(
    guides, monkeypatch
):
    """Cycles have one, two, four and eight epochs. Networks that always gain stop after
    the number of cycles that is allowed, and count as converged."""
    monkeypatch.setattr("sbi_jeffreys.training.schedule.MOST_EPOCHS", 1)
    monkeypatch.setattr("sbi_jeffreys.training.schedule.LEAST_EPOCHS", 1)
    for name, value in (("MAX_LAG", 100.0), ("MIN_SHARE", -1.0), ("MIN_GAIN", -100.0)):
        monkeypatch.setattr(stages, name, value)
    for name in ("EPOCHS_TO_LEARN", "EPOCHS_TO_FOLLOW"):
        monkeypatch.setattr(stages, name, 1)
    monkeypatch.setattr("sbi_jeffreys.training.early_stopping.MIN_GAIN", -100.0)
    monkeypatch.setattr(stages, "MOST_CYCLES", 3)
    trainer = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
    assert trainer.epoch == 1 + 2 + 4


@pytest.mark.parametrize("forward", [True, False])
def test_what_the_flow_follows(forward, guides, monkeypatch):
    """First pairs as the emulator draws them, and then the pooled energy. Its pairs have
    weights for KL(energy ‖ flow), which is taken if the emulator has most of the pool.
    For KL(flow ‖ energy), half of the x are those of simulations."""
    monkeypatch.setattr(PoolFit, "is_emulated", forward)
    trainer = make_trainer()
    quick(trainer)
    learn, follow = guides
    assert learn.forward
    assert not learn.batches.is_weighted
    assert isinstance(follow.batches, HalfSimulatedBatches) != forward
    pairs = follow.batches if forward else follow.batches.emulated
    assert follow.forward == pairs.is_weighted == forward
    assert follow.energy is trainer.energy
    for guide, emulated in ((learn, learn.batches), (follow, pairs)):
        assert guide.are_embedded
        assert emulated.energy is guide.energy
        assert isinstance(emulated.model, SyntheticLikelihood)


@pytest.mark.parametrize(
    ("linear", "emulated", "expected"),
    [(0.0, 1.0, True), (0.2, 0.8, True), (0.4, 0.6, False), (0.1, 0.4, False)],
)
def test_a_pool_is_emulated_if_the_emulator_has_half_of_it(linear, emulated, expected):
    pool = object.__new__(PoolFit)
    pool.models = {
        "linear_model": nn.Identity(),
        "synthetic_likelihood": SyntheticLikelihood(
            torch.zeros(1), torch.ones(1, 1), 1, 1, errors.CORRELATED
        ),
    }
    pool.weights = {"linear_model": linear, "synthetic_likelihood": emulated}
    assert pool.is_emulated == expected


@pytest.mark.parametrize(
    ("gain", "emulated", "fits"), [(0.6, False, 2), (0.6, True, 1), (0.4, False, 1)]
)
def test_models_are_fitted_again_if_the_flow_was_far_off(
    gain, emulated, fits, guides, monkeypatch
):
    """The flow follows for some of its epochs first, models that saw no held-out pairs.
    What can be drawn from is not fitted again, as it needs no draws of the flow."""
    monkeypatch.setattr(PoolFit, "gain", gain)
    monkeypatch.setattr(PoolFit, "is_emulated", emulated)
    monkeypatch.setattr(stages, "FULL_EFFORT", 1)
    monkeypatch.setattr(folds, "MAX_STEPS", 20)
    fitted, fit = [], PoolFit.fit

    def watched(pool, pair):
        fit(pool, pair)
        fitted.append(dict(pool.models))

    monkeypatch.setattr(PoolFit, "fit", watched)
    trainer = make_trainer()
    quick(trainer)
    assert len(fitted) == fits
    _, *follow = guides
    for name, first in fitted[0].items():
        is_the_same = first is fitted[-1][name]
        assert is_the_same == (fits == 1 or name == "synthetic_likelihood")
    if fits == 2:
        used = [m for m in fitted[0].values() if m in set(follow[0].energy.net.models)]
        assert len(used) == len(follow[0].energy.net.models)
    assert not set(follow[-1].energy.net.models) & set(fitted[-1].values())
    assert follow[-1].energy is trainer.energy
    epochs = round(stages.EPOCHS_TO_FOLLOW * 0.3**0.5)
    assert sum(guide.num_epochs for guide in follow) == pytest.approx(epochs, abs=1)


@pytest.mark.parametrize(
    "options", [{"pool": ("linear_model", "exponential_family")}, {"prior": None}, {}]
)
def test_without_an_emulator_or_a_prior_the_pairs_are_those_of_training(options, guides):
    """A flow whose embedding the energy does not share can't be given emulated pairs."""
    if not options:
        options = {"energy_embedding_net": nn.Flatten()}
    if "prior" in options:
        trainer = JNPE(show_progress_bars=False)
        theta, x, _ = make_trainer().get_simulations()
        trainer.append_simulations(theta, x)
    else:
        trainer = make_trainer(**options)
    quick(trainer)
    assert not any(guide.are_embedded for guide in guides)
    assert not any(guide.forward for guide in guides)


def test_simulations_of_a_truncated_prior_are_never_emulated(guides):
    """Nor if others come from the prior itself."""
    trainer = make_trainer()
    assert not trainer._simulations.is_truncated
    proposal = RestrictedPrior(trainer.prior, lambda theta: theta[:, 0] > 0, "rejection")
    theta = proposal.sample((100,))
    trainer.append_simulations(theta, theta + 0.3 * torch.randn(100, 2), proposal)
    trainer.append_simulations(theta, theta + 0.3 * torch.randn(100, 2), trainer.prior)
    assert trainer._simulations.is_truncated
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(EmulatedBatches, "draw")
        quick(trainer)
    assert not any(guide.are_embedded for guide in guides)


PHASES = {
    "networks": (JeffreysTraining, "_run_epoch", 2, "interrupted after 1 epochs"),
    "emulator": (SyntheticLikelihood, "fit", 1, "could not be pooled"),
    "learning": (EmulatedBatches, "draw", 1, "interrupted after 0 epochs"),
    "learning more": (EmulatedBatches, "draw", 30, "interrupted after 1 epochs"),
    "models": (LinearModel, "fit", 1, "could not be pooled"),
    "weights": (PoolFit, "choose", 1, "could not be pooled"),
    "later cycle": (JeffreysTraining, "_run_epoch", 5, "interrupted after 4 epochs"),
    "weights later": (PoolFit, "choose", 2, "could not be pooled"),
    "following at first": (EmulatedBatches, "draw", 45, "interrupted after 0 epochs"),
    "models again": (PoolFit, "fit", 2, "could not be pooled"),
    "pooled": (PoolFit, "pooled", 1, "could not be pooled"),
    "following": (EmulatedBatches, "draw", 45, "interrupted after 0 epochs"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_keeps_what_was_there(phase, monkeypatch):
    """Cycles have three and six epochs, and the flow learns and follows for two epochs
    each. The flow has the loss that is recorded. A training that is resumed ends as if it
    had not been interrupted."""
    monkeypatch.setattr("sbi_jeffreys.training.schedule.MOST_EPOCHS", 3)
    monkeypatch.setattr("sbi_jeffreys.training.schedule.LEAST_EPOCHS", 1)
    for name in ("EPOCHS_TO_LEARN", "EPOCHS_TO_FOLLOW"):
        monkeypatch.setattr(stages, name, 2 * 40 / 6 / 0.3**0.5)
    monkeypatch.setattr(stages, "MAX_LAG", 100.0)
    fits_again = phase in ("following at first", "models again")
    monkeypatch.setattr(PoolFit, "asks_for_a_better_flow", fits_again)
    owner, name, number, message = PHASES[phase]
    trainer = make_trainer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted_at(number, getattr(owner, name)))
        with pytest.warns(UserWarning, match=message):
            quick(trainer, 6)
    training = trainer._fit.training
    num_epochs = {"networks": 1, "later cycle": 4}.get(phase)
    pools_later = "could not be pooled" not in message
    if num_epochs is None:
        num_epochs = 3 if phase in ("emulator", "models", "weights") else training.epoch
    assert training.epoch == num_epochs
    assert len(trainer.summary["validation_loss"]) == num_epochs
    assert trainer.summary["best_validation_loss"] == [training.best_loss]
    theta, x, _ = trainer.get_simulations()
    rows = trainer.val_indices
    (loss,) = trainer.summary["followed_validation_loss"]
    own = trainer.flow.loss(theta[rows], x[rows]).mean().item()
    assert own == pytest.approx(loss, abs=1e-5)
    assert loss <= training.best_loss
    weights = [trainer.summary[f"{name}_weight"][0] for name in POOL_MODELS]
    assert isinstance(trainer.energy.net, Pool) == any(weights)
    if not pools_later:
        assert not any(weights)
        assert trainer.energy.net is trainer._fit.networks.energy.net
    if phase in ("models", "weights", "models again", "pooled", "following"):
        assert loss < training.best_loss  # what the flow learnt is kept
    for one in (trainer.energy, trainer._fit.networks.energy):
        assert one(theta[None], x).isfinite().all()
    posterior = trainer.build_posterior(sample_with="energy")
    assert posterior.sample((5,), x=x[:1], show_progress_bars=False).isfinite().all()
    quick(trainer, 6, resume_training=True)
    whole = make_trainer()
    quick(whole, 6)
    assert same_weights(trainer.flow, whole.flow)
    energies = (one.energy(theta[None], x) for one in (trainer, whole))
    assert torch.equal(*energies)
    for name in (
        "followed_validation_loss",
        *(f"{name}_weight" for name in POOL_MODELS),
    ):
        assert trainer.summary[name][-1:] == whole.summary[name]


def test_what_the_flow_recalls_does_not_change_the_embedding_of_the_energy():
    """Both share an embedding that learns. When training goes on, the flow may recall
    weights from before. The networks of the energy belong to the embedding of theirs."""
    trainer = make_trainer(embedding_net=nn.Linear(2, 2))
    quick(trainer, 3)
    first, best = (
        trainer.summary[f"{name}_validation_loss"][0] for name in ("followed", "best")
    )
    assert first < best
    quick(trainer, 6, resume_training=True)
    kept = trainer._fit.training.best_weights
    assert trainer._fit.training.best_loss > first
    for name, value in trainer.energy.embedding_net.state_dict().items():
        assert torch.equal(value, kept[f"energy.embedding_net.{name}"])
