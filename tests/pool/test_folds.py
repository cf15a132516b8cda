"""Folds of the synthetic likelihood's networks: who sees what, and what is kept."""

import numpy as np
import pytest
import torch

from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.synthetic_likelihood import SyntheticLikelihood, folds, model
from sbi_jeffreys.pool.synthetic_likelihood.ensemble import LikelihoodEnsemble
from sbi_jeffreys.pool.synthetic_likelihood.errors import CORRELATED, SMALL, ErrorModel
from sbi_jeffreys.pool.synthetic_likelihood.folds import FoldTraining, num_steps
from sbi_jeffreys.training.averaging import newest_share
from sbi_jeffreys.training.schedule import warm_cosine

pytestmark = pytest.mark.full_fits


def simulations(num):
    theta = torch.randn(num, 2)
    return theta, theta + 0.3 * torch.randn(num, 2)


def new_training(num=23, num_networks=5, steps=40, kind=CORRELATED, **options):
    torch.manual_seed(0)
    networks = LikelihoodEnsemble(num_networks, 2, 2, kind)
    return FoldTraining(networks, *simulations(num), torch.ones(num), steps, **options)


def test_every_simulation_is_in_the_fold_of_its_number_or_in_none():
    training = new_training(num=23)
    assert training.fold.tolist() == [[m, 5 + m, 10 + m, 15 + m] for m in range(5)]
    for m in range(5):
        others = set(range(23)) - set(training.fold[m].tolist())
        assert sorted(training.rest[m].tolist()) == sorted(others)
        assert {20, 21, 22} <= others


@pytest.mark.parametrize("more", [1, 2, 77])
def test_simulations_that_are_appended_keep_the_folds(more):
    fewer, appended = new_training(num=25), new_training(num=25 + more)
    for m in range(5):
        assert fewer.fold[m].tolist() == appended.fold[m].tolist()[:5]
        assert set(fewer.rest[m].tolist()) <= set(appended.rest[m].tolist())


def test_a_network_never_sees_its_fold():
    """It sees all others, those that are in no fold as well."""
    training = new_training(num=23, steps=60)
    seen = []

    def watch(networks, inputs):
        if networks.training:
            seen.append(inputs[0].detach().clone())

    training.networks.register_forward_pre_hook(watch)
    training.finish()
    assert len(seen) == 60
    rows = torch.stack(seen, 1).flatten(1, 2)  # those of each network
    assert rows.shape[:2] == (5, 60 * 19)  # a batch is as large as the rest
    for m in range(5):
        got = {tuple(row) for row in rows[m].tolist()}
        own = {tuple(row) for row in training.theta[training.fold[m]].tolist()}
        rest = {tuple(row) for row in training.theta[training.rest[m]].tolist()}
        assert got == rest
        assert not got & own


def test_what_is_in_a_fold_changes_nothing_but_the_loss_of_its_network(monkeypatch):
    """With a changed fold, its network gets the weights that it would have had. The
    others differ."""
    monkeypatch.setattr(folds, "STEPS_PER_CHECK", 1000)  # at the end alone
    trainings = []
    for change in (0.0, 3.0):
        training = new_training(num=20)
        training.s[training.fold[2]] += change
        torch.manual_seed(1)
        training.finish()
        trainings.append(training)
    one, other = trainings
    for name, values in one.networks.named_parameters():
        changed = dict(other.networks.named_parameters())[name]
        assert torch.equal(values[2], changed[2]), name
        if name == "linear.weight":
            assert not any(torch.equal(values[m], changed[m]) for m in (0, 1, 3, 4))
    assert one.best_losses[2] != other.best_losses[2]


def test_learning_rates_of_the_steps(monkeypatch):
    training = new_training(steps=30, rate_factor=0.3, kind=SMALL)
    seen = []
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups])
    )
    training.run(13)
    assert training.step == 13
    training.finish()
    want = [0.3 * 0.02 * warm_cosine(n, 30, 20) for n in range(30)]
    assert seen == [pytest.approx([rate, rate]) for rate in want]
    decays = [group["weight_decay"] for group in training.optimizer.param_groups]
    assert decays == [10.0 / 23, 0.0]


def test_each_network_keeps_the_average_that_fitted_its_fold_best():
    """Averages over steps are compared at the end of each call of `run`."""
    kind = ErrorModel(dropout=0.0, learning_rate=0.1)  # so high that it is erratic
    training = new_training(steps=20, kind=kind)
    checked = []
    average = [p.detach().clone() for p in training.networks.parameters()]
    for n in range(20):
        training.run(n + 1)
        for mean, latest in zip(average, training.networks.parameters(), strict=True):
            mean += newest_share(n, folds.AVERAGING) * (latest.detach() - mean)
        checked.append([values.clone() for values in average])
    training.finish()
    losses = []
    names = [name for name, _ in training.networks.named_parameters()]
    pairs = training.theta[training.fold], training.s[training.fold]
    for values in checked:
        named = dict(zip(names, values, strict=True))
        log_p = torch.func.functional_call(training.networks, named, pairs)
        losses.append(-log_p.mean(1).detach())
    best = torch.stack(losses).min(0)
    assert len(set(best.indices.tolist())) > 1
    torch.testing.assert_close(training.best_losses, best.values)
    assert training.loss == pytest.approx(float(best.values.mean()))
    for position, kept in enumerate(training.networks.parameters()):
        for m in range(5):
            want = checked[best.indices[m]][position][m]
            torch.testing.assert_close(kept.detach()[m], want)
    assert not training.networks.training
    assert all(p.grad is None for p in training.networks.parameters())


def test_it_stops_where_no_network_gains(monkeypatch):
    monkeypatch.setattr(folds, "PATIENCE", 40)
    training = new_training(steps=1000, rate_factor=0.0)
    training.finish()
    assert training.step == folds.STEPS_PER_CHECK + 40


def test_steps_grow_with_the_root_of_the_number_of_simulations():
    numbers = (10, 1000, 2000, 10**6)
    assert [num_steps(num, 1.0) for num in numbers] == [1800, 1800, 2546, 4000]
    assert [num_steps(num, 0.5) for num in numbers] == [900, 900, 1273, 2000]
    assert num_steps(10, 1e-9) == 1


def candidates(num=100, seed=0):
    torch.manual_seed(seed)
    return Candidates.without_draws(*simulations(num))


@pytest.fixture
def recorded(monkeypatch):
    """The trainings of a fit. A kind's loss is its place in `order`, from the front."""
    made, order = [], []

    class Recorded(FoldTraining):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.runs = []
            self.start = {
                name: p.detach().clone() for name, p in self.networks.named_parameters()
            }
            made.append(self)

        @property
        def loss(self):
            return float(order.index(self.networks.error_model))

        def run(self, until):
            self.runs.append(until)
            super().run(until)

    monkeypatch.setattr(model, "FoldTraining", Recorded)
    return made, order


KINDS = [ErrorModel(dropout=share, bandwidth=0) for share in (0.1, 0.2, 0.3, 0.4)]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_the_worse_half_of_the_kinds_is_dropped_twice(order, recorded, monkeypatch):
    monkeypatch.setattr(folds, "MAX_STEPS", 90)
    monkeypatch.setattr(model, "error_models_for", lambda num: KINDS)
    made, losses = recorded
    losses += [KINDS[number] for number in order]
    fitted = SyntheticLikelihood.fit(candidates())
    assert fitted.networks.error_model == KINDS[order[0]]
    runs = {KINDS.index(each.networks.error_model): each.runs for each in made}
    assert runs[order[0]] == [5, 10, 90]
    assert runs[order[1]] == [5, 10]
    assert runs[order[2]] == runs[order[3]] == [5]
    assert fitted.networks is next(t for t in made if t.runs[-1] == 90).networks


def test_of_three_kinds_two_are_left(recorded, monkeypatch):
    monkeypatch.setattr(folds, "MAX_STEPS", 90)
    monkeypatch.setattr(model, "error_models_for", lambda num: KINDS[:3])
    made, losses = recorded
    losses += KINDS
    SyntheticLikelihood.fit(candidates())
    assert [each.runs for each in made] == [[5, 10, 90], [5, 10], [5]]


def test_after_a_few_steps_there_is_a_loss_to_compare():
    """The first rung may come before the folds' first regular evaluation."""
    training = new_training(steps=60)
    training.run(5)
    assert folds.STEPS_PER_CHECK > 5
    assert np.isfinite(training.loss)


def test_a_continued_fit_starts_from_the_earlier_weights(recorded, monkeypatch):
    """It has a quarter of the steps, 0.3 times the learning rate, the earlier summaries,
    and more simulations. The earlier model stays as it is."""
    monkeypatch.setattr(folds, "MAX_STEPS", 40)
    monkeypatch.setattr(model, "error_models_for", lambda num: [SMALL])
    made, losses = recorded
    losses.append(SMALL)
    earlier = SyntheticLikelihood.fit(candidates())
    before = {name: values.clone() for name, values in earlier.state_dict().items()}
    later = SyntheticLikelihood.fit(candidates(120), earlier)
    first, second = made
    assert (first.num_steps, second.num_steps) == (40, 10)
    assert second.rate == pytest.approx(0.3 * first.rate)
    assert len(second.theta) == 120
    for name, values in earlier.networks.named_parameters():
        assert torch.equal(second.start[name], values)
    for name, values in earlier.state_dict().items():
        assert torch.equal(values, before[name])
    assert torch.equal(later.center, earlier.center)
    assert torch.equal(later.projection, earlier.projection)
    assert not torch.equal(later.networks.last.weight, earlier.networks.last.weight)
    assert not any(p.requires_grad for p in later.parameters())


def test_a_continued_fit_in_no_steps_is_the_earlier_one(monkeypatch):
    monkeypatch.setattr(folds, "MAX_STEPS", 40)
    earlier = SyntheticLikelihood.fit(candidates())
    more = candidates(120)
    later = SyntheticLikelihood.fit(more, earlier, effort=0.01).state_dict()
    assert torch.equal(later.pop("low"), more.features.amin(0))
    assert torch.equal(later.pop("high"), more.features.amax(0))
    for name, values in later.items():
        assert torch.equal(values, earlier.state_dict()[name])
