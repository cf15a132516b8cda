"""The pool: by hand, what weight is chosen, and that training goes on without it."""

import pickle
from copy import deepcopy

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils.data.dataloader import default_collate

from sbi_jeffreys import JNPE
from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.data.batches import SlicedBatches
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.models.prior_base import base_density
from sbi_jeffreys.pool import opinion_pool as pool
from sbi_jeffreys.pool import synthetic_likelihood
from sbi_jeffreys.pool.exponential_family import ExponentialFamily
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.opinion_pool import (
    Candidates,
    Pool,
    Weights,
    _best_weights,
    fit_pool,
)
from sbi_jeffreys.preprocessing.support import support_of
from sbi_jeffreys.training.loop import JeffreysTraining
from tests.closed_forms import GaussianFlow

NOISE = 0.5
PRIOR = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())


class Ratio(nn.Module):
    """What a network would return that has learnt `factor` times the log-ratio."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, input, condition):
        theta = input * SCALE + LOC
        r = (theta * condition - theta.square() / 2).sum(-1) / NOISE**2
        return self.factor * r


def simulations(num):
    theta = PRIOR.sample((num,))
    return theta, theta + NOISE * torch.randn(num, 2).double()


@pytest.fixture(autouse=True)
def one_error_model(monkeypatch):
    """Of the synthetic likelihood's errors; how it chooses has tests of its own."""
    monkeypatch.setattr(
        synthetic_likelihood, "ERROR_MODELS", (synthetic_likelihood.CORRELATED,)
    )


torch.manual_seed(0)
TRAINING, VALIDATION = simulations(1000), simulations(400)
LOC, SCALE = TRAINING[0].mean(0), TRAINING[0].std(0)


def pool_of(models, training, validation):
    theta, x = (torch.cat(both) for both in zip(training, validation, strict=True))
    rows = torch.arange(len(theta)).split([len(training[0]), len(validation[0])])
    return fit_pool(models, theta, x, *rows)


def pair(factor):
    support = support_of(PRIOR, TRAINING[0])
    energy = ConditionalEnergy(
        Ratio(factor),
        base_density(PRIOR, TRAINING[0], support),
        support,
        TRAINING[0],
        nn.Identity(),
        TRAINING[1][0].shape,
    )
    return ModelPair(GaussianFlow(log_scale=-0.5), energy)


def test_weighted_average_by_hand():
    theta, x = torch.randn(5, 7, 2).double(), torch.randn(7, 2).double()
    linear = LinearModel.fit(*TRAINING)
    members = nn.Module()
    members.forward = lambda input, condition: torch.stack(
        [Ratio(1.0)(input, condition), Ratio(2.0)(input, condition)]
    )
    family = ExponentialFamily(2, 2).double()
    pool = Pool(members, [linear, family], (0.25, 0.5))
    want = 0.25 * Ratio(1.5)(theta, x) + 0.25 * linear(theta, x) + 0.5 * family(theta, x)
    torch.testing.assert_close(pool(theta, x), want)


@pytest.mark.full_fits
@pytest.mark.parametrize(
    ("factor", "low", "high"), [(1.0, 0.0, 1.0), (0.0, 0.95, 1.0), (3.0, 0.9, 1.0)]
)
def test_networks_that_learnt_nothing_or_too_much_give_way(factor, low, high):
    energy, weights = pool_of(pair(factor), TRAINING, VALIDATION)
    assert low <= sum(weights) <= high
    theta, x = simulations(1000)
    grid = PRIOR.sample((200, 1))
    log_q = energy(torch.cat([theta[None], grid.expand(-1, 1000, -1)]), x).log_softmax(0)
    truth = pair(1.0).energy
    exact = truth(torch.cat([theta[None], grid.expand(-1, 1000, -1)]), x).log_softmax(0)
    assert float((exact - log_q)[0].mean()) == pytest.approx(0.0, abs=0.02)


@pytest.mark.full_fits
def test_each_model_has_the_weight_where_it_is_right(monkeypatch):
    """Gaussian errors of θ, where all are, and may share it. Errors of two sizes, where
    the exponential family is not. Spikes, of which x are sufficient statistics, where it
    is, though with three of them others come near: in four repetitions its weight was
    0.1 to 0.55. And a mean that is curved, where the synthetic likelihood alone is."""
    monkeypatch.setattr(synthetic_likelihood, "MAX_STEPS", 1000)
    theta, fresh = TRAINING[0][:400], VALIDATION[0][:200]

    def weights(simulator):
        torch.manual_seed(1)
        return pool_of(pair(0.0), (theta, simulator(theta)), (fresh, simulator(fresh)))[1]

    def with_outliers(theta):
        far = (torch.rand(len(theta), 1) < 0.1) * 3.0
        return theta + (NOISE / 5 + far) * torch.randn_like(theta)

    def spikes(theta):
        design = torch.tensor([[4.0, 0.0], [0.0, 4.0], [3.0, -3.0]]).double()
        return torch.bernoulli((theta @ design.T).sigmoid()) @ design / 4

    def curved(theta):
        bent = torch.stack([theta[:, 0], theta[:, 1] + 2 * theta[:, 0].square()], 1)
        return bent + NOISE / 5 * torch.randn_like(theta)

    assert sum(weights(lambda theta: theta + NOISE * torch.randn_like(theta))) > 0.95
    assert weights(with_outliers).exponential_family < 0.2
    assert weights(spikes).exponential_family > 0.2
    assert weights(curved).synthetic_likelihood > 0.8


@pytest.mark.full_fits
def test_models_that_say_nothing_get_no_weight():
    """Beside networks that are not sure enough already."""
    theta, x = TRAINING
    models = pair(0.8)
    energy, weights = pool_of(models, (theta[torch.randperm(len(theta))], x), VALIDATION)
    assert weights == (0.0, 0.0, 0.0)
    assert energy is models.energy


class Product(nn.Module):
    def forward(self, input, condition):
        return (input * condition).sum(-1)


@pytest.mark.parametrize(("smaller", "weight"), [(0.1, 0.0), (3.0, 1.0)])
def test_a_gain_is_visible_by_students_distribution(smaller, weight):
    """Of two pairs, one gains 0.69 nats, and the other 0.05 or 0.64: a mean of 1.15
    standard errors, or of 27. With two pairs, it takes 1.84 of them to be as sure as with
    one if the error were known."""
    theta = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 2, 1)
    held_out = Candidates(theta, torch.tensor([[20.0], [smaller]]), torch.zeros(2, 2))
    nothing = Product()
    nothing.forward = lambda input, condition: torch.zeros(input.shape[:-1])
    weights = _best_weights(nothing, [Product(), nothing, nothing], held_out)
    assert weights == (weight, 0.0, 0.0)


class Entry(nn.Module):
    """Half of an entry of the parameters, whatever x."""

    def __init__(self, entry):
        super().__init__()
        self.entry = entry

    def forward(self, input, condition):
        return 0.5 * input[..., self.entry]


@pytest.mark.parametrize(("num", "most"), [(10, 30), (100, 20)])
def test_models_that_know_nothing_seldom_have_a_weight(num, most):
    """True parameters are draws like the others. With ten pairs 17 % of trials, and with
    100 9 %: more than allowed, of 100 trials, by chance less than once in 1,000 times."""
    nothing = Product()
    nothing.forward = lambda input, condition: torch.zeros(input.shape[:-1])
    wrong = 0
    for seed in range(100):
        torch.manual_seed(seed)
        held_out = Candidates(
            torch.randn(33, num, 3), torch.zeros(num, 1), torch.zeros(33, num)
        )
        wrong += any(_best_weights(nothing, [Entry(d) for d in range(3)], held_out))
    assert 0 < wrong <= most


def test_nothing_is_lost_where_no_model_can_be_fitted():
    theta, x = TRAINING
    models, none = pair(0.5), (0.0, 0.0, 0.0)
    one_pair = pool_of(models, (theta[:1], x[:1]), VALIDATION)
    assert one_pair == (models.energy, none)


def test_features_that_are_not_finite_are_refused():
    theta, x = TRAINING
    x = x.where(x < x.max(), torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        pool_of(pair(0.5), (theta, x), VALIDATION)


def test_a_few_simulations_are_gathered_at_a_time_and_no_more_than_needed(monkeypatch):
    monkeypatch.setattr(pool, "MAX_NUMBERS", 2 * 1000)
    gathered = []

    class Watched(ConcatenatedRows):
        def __getitem__(self, indices):
            gathered.append(len(indices))
            return super().__getitem__(indices)

    theta, x = simulations(3000)
    rows = torch.arange(3000).split([2000, 1000])
    fit_pool(pair(0.5), theta, Watched([x]), *rows)
    assert max(gathered) <= pool.CHUNK
    assert sum(gathered) == 1000 + 100 + 1


def test_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    pool_of(pair(0.5), TRAINING, VALIDATION)
    assert torch.equal(torch.get_rng_state(), before)


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
    names = [f"{model}_weight" for model in Weights._fields]
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

    monkeypatch.setattr(pool, "FITS", (fails,))
    with (
        pytest.warns(UserWarning, match=f"could not be pooled.*{problem.__name__}"),
        pytest.warns(UserWarning, match="max_num_epochs"),
    ):
        trainer.train(max_num_epochs=2)
    assert trainer.energy.net is trainer._trained_energy.net
    assert trainer.summary["linear_model_weight"] == [0.0]
    trainer.build_posterior(sample_with="energy")


def test_models_that_do_not_know_the_weights_of_simulations_are_not_fitted(trainer):
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=3, calibration_kernel=lambda x: torch.ones(len(x)))
    assert trainer.energy is trainer._trained_energy


def test_batches_that_are_not_the_simulations_are_not_pooled(trainer):
    def noisy(rows):
        theta, x, mask = default_collate(rows)
        return theta, x + 0.3 * torch.randn_like(x), mask

    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(max_num_epochs=3, dataloader_kwargs={"collate_fn": noisy})
    assert trainer.energy is trainer._trained_energy
    assert trainer.summary["linear_model_weight"] == [0.0]
    assert (
        trainer.summary["followed_validation_loss"]
        == trainer.summary["best_validation_loss"]
    )


@pytest.mark.full_fits
def test_both_posteriors_know_the_pool(trainer):
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


def test_the_flow_follows_the_pool_once_training_stalls_and_keeps_what_it_gained():
    trainer = make_trainer(dim=6)
    flow = trainer.train(stop_after_epochs=40)
    energy, state = trainer.energy, trainer._training
    theta, x = (values[trainer.val_indices] for values in trainer.get_simulations()[:2])
    nll = float(-flow.log_prob(theta[None], x)[0].detach().mean())
    (followed_loss,) = trainer.summary["followed_validation_loss"]
    (best,) = trainer.summary["best_validation_loss"]
    assert nll == pytest.approx(followed_loss, abs=1e-5)
    assert followed_loss < best == min(trainer.summary["validation_loss"])
    assert len(trainer.summary["validation_loss"]) == trainer.epoch == state.epoch
    kept = state.best_weights
    for name, value in trainer._trained_energy.state_dict().items():
        assert torch.equal(value, kept[f"energy.{name}"])
    assert any(
        not torch.equal(value, kept[f"flow.{name}"])
        for name, value in flow.state_dict().items()
    )
    assert energy.net.net is trainer._trained_energy.net

    followed = deepcopy(flow.state_dict())
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(
            resume_training=True, stop_after_epochs=100, max_num_epochs=state.epoch + 1
        )
    assert trainer.summary["followed_validation_loss"] == [followed_loss] * 2
    for name, value in flow.state_dict().items():
        assert torch.equal(value, followed[name])


def test_what_following_gained_is_kept_by_a_call_that_does_not_pool(monkeypatch):
    """And the energy's embedding, which the flow has changed, is the networks' own."""
    trainer = make_trainer(dim=6, embedding_net=nn.Linear(6, 6))
    flow = trainer.train(stop_after_epochs=40)
    (loss,) = trainer.summary["followed_validation_loss"]
    followed = deepcopy(flow.state_dict())
    monkeypatch.setattr(
        "sbi_jeffreys.trainer.fit_pool",
        lambda pair, *_: (pair.energy, Weights(0.0, 0.0, 0.0)),
    )
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(resume_training=True, max_num_epochs=trainer.epoch + 1)
    assert trainer.summary["followed_validation_loss"] == [loss, loss]
    kept = trainer._training.best_weights
    assert trainer.energy.net is trainer._trained_energy.net
    for name, value in trainer.energy.state_dict().items():
        assert torch.equal(value, kept[f"energy.{name}"])
    for name, value in flow.state_dict().items():
        assert torch.equal(value, followed[name])


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
    return trainer._training.follow(energy, *batches, **{**defaults, **options})


def test_an_energy_that_is_followed_stays_as_it_is():
    """Without dropout, and with the statistics that its parts were fitted with."""
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


def test_a_worse_energy_is_not_followed(trainer):
    with pytest.warns(UserWarning, match="max_num_epochs"):
        flow = trainer.train(max_num_epochs=20)
    before = deepcopy(flow.state_dict())
    wrong = deepcopy(trainer.energy)
    wrong.loc += 1.0
    assert follow(trainer, wrong) == trainer._training.best_loss
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_energy_that_is_not_finite_is_not_followed(trainer):
    with pytest.warns(UserWarning, match="max_num_epochs"):
        flow = trainer.train(max_num_epochs=3)
    before = deepcopy(flow.state_dict())
    broken = deepcopy(trainer.energy)
    broken.scale *= torch.nan
    with pytest.warns(UserWarning, match="The flow stays as it was"):
        assert follow(trainer, broken) == trainer._training.best_loss
    assert not flow.training
    assert all(parameter.grad is None for parameter in flow.parameters())
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])
