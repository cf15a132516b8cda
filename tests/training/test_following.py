"""Following, on Gaussian flows and energies."""

import copy
from math import log

import pytest
import torch
from torch import nn

from sbi_jeffreys import ConditionalFlow, build_spline_flow
from sbi_jeffreys.data.batches import SlicedBatches
from sbi_jeffreys.pool.emulation import EmulatedBatches
from sbi_jeffreys.preprocessing.support import support_of
from sbi_jeffreys.training.following import FollowingPair, Guide, follow
from sbi_jeffreys.training.schedule import Cycles
from sbi_jeffreys.training.step import PrimalDualStep, TrainingOptions
from tests.closed_forms import ConjugateGaussian, GaussianFlow, QuadraticEnergy
from tests.training.test_loop import (
    TRAINING,
    VALIDATION,
    make_batches,
    make_data,
    make_training,
    run,
)

GOOD = {"a": 1 / 0.3**2, "b": 0.5}  # the energy of the data of `make_batches`


def guide_of(energy, epochs, forward=False):
    return Guide(energy, make_batches(TRAINING), forward, False, epochs)


def follow_guide(flow, guide, validation=None, best_loss=float("inf"), rate=0.05):
    return follow(
        flow,
        guide,
        validation or make_batches(VALIDATION),
        options=TrainingOptions(),
        learning_rate=rate,
        best_loss=best_loss,
        seed=1,
        device=torch.device("cpu"),
        clip_max_norm=5.0,
        show_progress=False,
    )


def in_batches(theta, x, size=30):
    rows = torch.arange(len(x))
    return SlicedBatches(theta, x, rows, size, False, lambda x: torch.ones(len(x)), "cpu")


@pytest.mark.parametrize("forward", [True, False])
def test_both_divergences_by_hand(forward):
    flow, energy = GaussianFlow(0.2, -0.4), QuadraticEnergy(1.5, 0.1, 0.7)
    theta, x = make_data(20)
    weights = torch.rand(20, dtype=torch.float64)
    pair = FollowingPair(flow, guide_of(energy, 1, forward), TrainingOptions())
    torch.manual_seed(3)
    got = pair(theta, x, weights).tolist()
    torch.manual_seed(3)
    if forward:
        nll = -(weights * flow.log_prob(theta, x)).mean().item()
        assert got == pytest.approx([nll, 0.0, 0.0], rel=1e-12)
    else:
        draws, log_p = flow.sample_and_log_prob((1,), x)
        kl = (log_p - energy(draws, x)).mean().item()
        assert got == pytest.approx([0.0, kl, 0.0], rel=1e-12)


class Doubling(nn.Module):
    """An embedding that must not be used twice."""

    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("forward", [True, False])
def test_embedded_pairs_give_the_divergence_of_what_was_embedded(forward):
    """The embedding of the flow, which doubles x, is left out for both models."""
    task = ConjugateGaussian()
    theta, x = task.simulate(50, 0)
    flow = ConditionalFlow(
        build_spline_flow(theta, x, embedding_net=Doubling()), support_of(None, theta)
    )
    energy, ones = task.energy(), torch.ones(50)
    energy.embedding_net = flow.embedding_net
    embedded = flow.embedding_net(x).detach()
    batches = make_batches(TRAINING)
    terms = []
    for are_embedded, values in ((False, x), (True, embedded)):
        guide = Guide(energy, batches, forward, are_embedded, 1)
        torch.manual_seed(0)
        terms.append(FollowingPair(flow, guide, TrainingOptions())(theta, values, ones))
    torch.testing.assert_close(*terms)
    assert terms[0].abs().max() > 0.1


@pytest.mark.parametrize("forward", [True, False])
def test_an_embedding_that_is_not_used_stays_as_it_is(forward):
    task = ConjugateGaussian()
    theta, x = task.simulate(60, 0)
    embedding = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    embedding[1].bias.requires_grad_(False)
    flow = ConditionalFlow(
        build_spline_flow(theta, x, embedding_net=embedding), support_of(None, theta)
    )
    before = copy.deepcopy(flow.state_dict())
    features = flow.embedding_net.eval()(x).detach()
    kept = copy.deepcopy(flow.embedding_net.state_dict())
    guide = Guide(task.energy(), in_batches(theta, features), forward, True, 3)
    follow_guide(flow, guide, in_batches(theta, x), rate=0.01)
    for name, value in flow.embedding_net.state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert any(
        not torch.equal(value, before[name]) for name, value in flow.state_dict().items()
    )
    assert embedding[0].weight.requires_grad
    assert embedding[1].weight.requires_grad
    assert not embedding[1].bias.requires_grad


@pytest.mark.parametrize("forward", [False, True])
def test_the_flow_becomes_the_energy_which_stays_as_it_is(forward):
    torch.manual_seed(0)
    flow, energy = GaussianFlow(), QuadraticEnergy(**GOOD).train()
    energy.c.requires_grad_(False)
    before = copy.deepcopy(energy.state_dict())
    followed = follow_guide(flow, guide_of(energy, 150, forward))
    assert flow.loc.item() == pytest.approx(0.5, abs=0.05)
    assert flow.log_scale.exp().item() == pytest.approx(0.3, abs=0.06)
    for name, value in flow.state_dict().items():
        assert torch.equal(value, followed.weights[name])
    for name, value in energy.state_dict().items():
        assert torch.equal(value, before[name])
    assert [p.requires_grad for p in energy.parameters()] == [True, True, False]
    assert not energy.training
    assert all(p.grad is None for p in [*flow.parameters(), *energy.parameters()])


class LinearGaussianFlow(GaussianFlow):
    """p(θ|x) = N(slope x + loc, scale²), of single precision; x is embedded as it is."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.0))
        self.float()

    def given(self, condition):
        return super().given(self.slope * condition)

    given_embedded = given


class WrongNoise(nn.Module):
    """A model whose errors have another variance than those of the task."""

    def __init__(self, task, variance):
        super().__init__()
        self.variance = variance
        right = task.energy()
        self.net = ConjugateGaussian(task.dim, variance).energy().net
        self.loc, self.scale = right.loc, right.scale

    def simulate(self, theta, features):
        theta = theta * self.scale + self.loc
        return theta + self.variance**0.5 * torch.randn_like(theta)

    def fit_evidence(self, candidates):
        raise AssertionError("its log-ratio is exact")

    def forward(self, input, condition):
        return self.net(input, condition)


@pytest.mark.parametrize(
    ("forward", "is_weighted", "variance"),
    [
        (True, False, 0.8),  # the posterior of the model
        (True, True, 0.5),  # that of the energy
        (False, True, 0.5),
        (False, False, 0.5),
    ],
)
def test_emulated_pairs_lead_to_a_closed_form_posterior(forward, is_weighted, variance):
    """x = θ + e with errors of the variance 0.5, and a model that takes 0.8 for it. The
    posterior has the mean x / (1 + variance) and the variance variance / (1 + variance).

    The two slopes are 0.56 and 0.67, the two scales 0.67 and 0.58. Over ten seeds, the
    errors of the averaged weights had standard deviations of 0.005 or less."""
    task = ConjugateGaussian(variance=0.5)
    energy, model = task.energy(), WrongNoise(task, 0.8)
    features = task.simulate(100, 1)[1]
    pairs = EmulatedBatches(model, task.prior, energy, features, is_weighted, 200)
    theta, x = ConjugateGaussian(variance=variance).simulate(4000, 2)
    held_out = in_batches(theta, x, 4000)
    flow = LinearGaussianFlow()
    follow_guide(flow, Guide(energy, pairs, forward, True, 40), held_out, rate=0.02)
    assert flow.slope.item() == pytest.approx(1 / (1 + variance), abs=0.025)
    assert flow.loc.item() == pytest.approx(0.0, abs=0.025)
    scale = (variance / (1 + variance)) ** 0.5
    assert flow.log_scale.item() == pytest.approx(log(scale), abs=0.03)


def test_only_what_lowers_the_held_out_loss_is_kept():
    flow = GaussianFlow(0.5, -1.2)
    before = copy.deepcopy(flow.state_dict())
    guide = guide_of(QuadraticEnergy(0.1, -3.0), 5)
    followed = follow_guide(flow, guide, best_loss=0.0)
    assert followed.loss == 0.0
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])


def test_learning_rates_are_those_of_one_cycle(monkeypatch):
    seen = []
    monkeypatch.setattr(
        PrimalDualStep, "scale_rates", lambda self, factor: seen.append(factor)
    )
    follow_guide(GaussianFlow(), guide_of(QuadraticEnergy(**GOOD), 10))
    assert seen == [Cycles(10).factor(epoch) for epoch in range(10)]


class Interrupting(QuadraticEnergy):
    """Is interrupted after a number of calls in training."""

    def __init__(self, after, **options):
        super().__init__(**options)
        self.left = after

    def forward(self, input, condition):
        if not torch.is_grad_enabled():
            return super().forward(input, condition)
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().forward(input, condition)


@pytest.mark.parametrize(("after", "gains"), [(0, False), (21, True)])
def test_an_interrupt_keeps_what_the_flow_has_gained(after, gains):
    """The flow is that of the best epoch before the interrupt."""
    flow, plain = GaussianFlow(), GaussianFlow()
    theta, x = (values[list(VALIDATION)] for values in make_data())
    start = -flow.log_prob(theta, x).mean().item()
    guide = guide_of(Interrupting(after, **GOOD), 40)
    with pytest.warns(UserWarning, match=rf"interrupted after {after // 2} epochs"):
        followed = follow_guide(flow, guide, best_loss=start)
    assert (followed.loss < start) == gains
    loss = -flow.log_prob(theta, x).mean().item()
    assert loss == pytest.approx(followed.loss, abs=1e-9)
    assert torch.equal(flow.loc, plain.loc) != gains


def test_a_training_recalls_what_its_flow_has_gained():
    training = make_training()
    run(training, 3)
    best = training.best_loss
    assert training.recall_followed() == best
    arguments = make_batches(VALIDATION), 5.0, False
    loss = training.follow(guide_of(QuadraticEnergy(**GOOD), 60), *arguments)
    gained = copy.deepcopy(training.pair.flow.state_dict())
    assert loss < best == training.best_loss

    run(training, 4)
    assert training.best_loss > loss
    assert not torch.equal(training.pair.flow.loc, gained["loc"])
    assert training.recall_followed() == loss
    assert torch.equal(training.pair.flow.loc, gained["loc"])
    assert training.follow(guide_of(QuadraticEnergy(), 0), *arguments) == loss


def test_following_has_no_influence_on_how_training_goes_on():
    plain, followed = make_training(cycle=3), make_training(cycle=3)
    run(plain, 8)
    run(followed, 4)
    guide = guide_of(QuadraticEnergy(**GOOD), 5)
    followed.follow(guide, make_batches(VALIDATION), 5.0, False)
    run(followed, 8)
    losses = [t.history["validation_loss"] for t in (plain, followed)]
    assert losses[0] == losses[1]
    for got, want in zip(
        followed.pair.parameters(), plain.pair.parameters(), strict=True
    ):
        assert torch.equal(got, want)
