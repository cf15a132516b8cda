"""The training loop, on a Gaussian flow and a quadratic energy."""

import copy
import pickle
from statistics import mean

import pytest
import torch
from torch import nn
from torch.optim import Adam

from sbi_jeffreys.data.batches import SlicedBatches
from sbi_jeffreys.objective.multipliers import FixedMultipliers, ResilientMultipliers
from sbi_jeffreys.training.early_stopping import MIN_GAIN
from sbi_jeffreys.training.loop import JeffreysTraining
from sbi_jeffreys.training.schedule import Cycles
from sbi_jeffreys.training.step import TrainedPair, TrainingOptions
from tests.closed_forms import GaussianFlow, QuadraticEnergy


def kernel(x):
    return torch.ones(len(x), dtype=x.dtype)


def make_data(num=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 1, generator=generator, dtype=torch.float64)
    theta = x + 0.5 + 0.3 * torch.randn(num, 1, generator=generator, dtype=torch.float64)
    return theta, x


def make_batches(indices, batch_size=20, num=60):
    theta, x = make_data(num)
    indices = torch.as_tensor(indices)
    return SlicedBatches(theta, x, indices, batch_size, True, kernel, "cpu")


TRAINING, VALIDATION = range(40), range(40, 60)


def make_training(
    multipliers=None, energy=None, learning_rate=0.01, seed=0, cycle=1000, **options
):
    torch.manual_seed(seed)
    return JeffreysTraining(
        GaussianFlow(),
        energy or QuadraticEnergy(),
        multipliers or ResilientMultipliers(),
        TrainingOptions(**options),
        learning_rate=learning_rate,
        energy_learning_rate=2 * learning_rate,
        cycles=Cycles(cycle),
    )


def run(training, epochs, stop_after=1000, clip=5.0):
    return training.run(
        make_batches(TRAINING), make_batches(VALIDATION), epochs, stop_after, clip, False
    )


def test_one_step_equals_a_hand_written_one():
    weights = (0.7, 1.3, 0.4)
    training = make_training(
        FixedMultipliers(weights), num_particles=5, normalizer="importance"
    )
    by_hand = copy.deepcopy(training.pair)
    flow, energy = by_hand.flow, by_hand.energy
    theta, x = make_data(20)

    torch.manual_seed(3)
    training.step.clip_max_norm = 0.8
    training.step(theta, x, kernel(x))

    torch.manual_seed(3)
    draws, log_p = flow.sample_and_log_prob((5,), x)
    frozen = copy.deepcopy(energy).requires_grad_(False)
    flow_loss = (
        -weights[0] * flow.log_prob(theta, x).mean()
        + weights[1] * (log_p - frozen(draws, x)).mean()
    )
    draws, log_p = draws.detach(), log_p.detach()
    log_z = ((energy(draws, x) - log_p).exp().mean(0)).log().mean()
    energy_loss = weights[2] * (-energy(theta, x).mean() + log_z) + weights[1] * (
        -energy(draws, x).mean() + log_z
    )
    for model, loss, rate in ((flow, flow_loss, 0.01), (energy, energy_loss, 0.02)):
        optimizer = Adam(model.parameters(), lr=rate)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.8)
        optimizer.step()
    for got, want in zip(training.pair.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(got, want)


def test_converges_to_the_posterior():
    training = make_training(learning_rate=0.02)
    run(training, 400, stop_after=400)
    flow, energy = training.pair.flow, training.pair.energy
    theta, x = make_data()
    residual = (theta - x)[list(TRAINING)]
    # The flow's optimum is the training mean; validation stops it within its error.
    assert flow.loc.item() == pytest.approx(residual.mean().item(), abs=0.05)
    assert flow.log_scale.exp().item() == pytest.approx(0.3, abs=0.06)
    assert energy.b.item() == pytest.approx(0.5, abs=0.1)
    assert mean(training.history["validation_ess"][-50:]) > 0.9  # noise of 0.02 each


@pytest.mark.parametrize("stops", [(7,), (1, 4, 7)])
def test_resuming_is_exact(stops):
    whole, parts = make_training(cycle=3), make_training(cycle=3)
    run(whole, 12)
    for epochs in (*stops, 12):
        run(parts, epochs)
        parts = pickle.loads(pickle.dumps(parts))
        torch.rand(5)  # random numbers in between have no influence
    for got, want in zip(parts.pair.parameters(), whole.pair.parameters(), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(parts.step.multipliers.values, whole.step.multipliers.values)
    assert parts.step.reference.value == whole.step.reference.value
    durations = "epoch_durations_sec"
    assert {k: v for k, v in parts.history.items() if k != durations} == {
        k: v for k, v in whole.history.items() if k != durations
    }


def test_training_leaves_the_global_random_state_alone():
    training = make_training()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(training, 3)
    assert torch.equal(torch.rand(3), expected)


def test_an_interrupt_keeps_the_last_whole_epoch_and_resumes_exactly():
    class Interrupting(QuadraticEnergy):
        calls = 0

        def forward(self, input, condition):
            Interrupting.calls += 1
            if Interrupting.calls == 30:  # in the middle of an epoch
                raise KeyboardInterrupt
            return super().forward(input, condition)

    interrupted = make_training(energy=Interrupting())
    with pytest.warns(UserWarning, match="interrupted"):
        run(interrupted, 20)
    assert 0 < interrupted.epoch < 20
    assert len(interrupted.history["validation_loss"]) == interrupted.epoch
    run(interrupted, 20)
    whole = make_training()
    run(whole, 20)
    for got, want in zip(
        interrupted.pair.parameters(), whole.pair.parameters(), strict=True
    ):
        assert torch.equal(got, want)


class Exploding(QuadraticEnergy):
    def __init__(self, after):
        super().__init__()
        self.after = after
        self.calls = 0

    def forward(self, input, condition):
        self.calls += self.training
        factor = float("nan") if self.calls > self.after else 1.0
        return factor * super().forward(input, condition)


NAN_AT_EPOCH_6 = (
    r"KL\(flow\|energy\) and KL\(data\|energy\) became NaN .* step 1 of epoch 6"
)


def test_a_divergence_names_term_and_epoch_and_keeps_the_best_weights():
    training = make_training(energy=Exploding(after=10))
    with pytest.warns(UserWarning, match=NAN_AT_EPOCH_6):
        run(training, 20)
    assert training.epoch == 5
    assert all(p.isfinite().all() for p in training.pair.parameters())


def test_a_divergence_at_once_is_an_error():
    with pytest.raises(FloatingPointError, match="epoch 1"):
        run(make_training(energy=Exploding(after=0)), 20)


def test_the_weights_kept_are_those_of_the_best_epoch():
    training = make_training(learning_rate=0.3)  # so high that the loss is erratic
    run(training, 25)
    losses = training.history["validation_loss"]
    assert training.best_loss == min(losses) < losses[-1]
    theta, x = (values[list(VALIDATION)] for values in make_data())
    loss = -training.pair.flow.log_prob(theta, x).mean()
    assert loss.item() == pytest.approx(min(losses), abs=1e-9)


def test_stops_by_itself_after_its_patience():
    training = make_training(learning_rate=0.1)
    assert run(training, 2000, stop_after=25)
    assert training.epoch < 2000
    assert training.epochs_since_best == 25


def test_learning_rates_are_those_of_the_cycles():
    """Also in the optimiser, for both models, and where training goes on."""
    training, seen = make_training(cycle=6), []
    training.step.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups])
    )
    run(training, 4)
    run(training, 14)
    factors = [training.cycles.factor(epoch) for epoch in range(14)]
    assert training.history["learning_rate"] == pytest.approx(
        [0.01 * factor for factor in factors]
    )
    assert factors[6] == factors[0] == 0.2
    steps_per_epoch = 2
    assert len(seen) == 14 * steps_per_epoch
    wanted = [[0.01 * f, 0.02 * f] for f in factors for _ in range(steps_per_epoch)]
    for got, want in zip(seen, wanted, strict=True):
        assert got == pytest.approx(want)


@pytest.mark.parametrize(
    ("learning_rate", "most", "epochs"), [(1e-9, 100, 9), (0.05, 9, 9), (1e-9, 5, 5)]
)
def test_stops_at_the_end_of_a_cycle_that_gained_nothing(learning_rate, most, epochs):
    """The second cycle ends after 3 + 6 epochs, at which the next would begin."""
    training = make_training(cycle=3, learning_rate=learning_rate)
    stalls = learning_rate < 1e-3 and epochs == 9
    assert run(training, most, stop_after=None) == stalls
    assert training.epoch == epochs
    losses = training.history["validation_loss"]
    if stalls:
        assert min(losses[:3]) - MIN_GAIN < min(losses)
        assert run(training, most, stop_after=None)
        assert training.epoch == epochs


def test_the_end_of_a_cycle_is_known_where_training_goes_on():
    """A stop in the middle of a cycle changes nothing about when training ends."""
    whole = make_training(cycle=3, learning_rate=0.1)
    assert run(whole, 1000, stop_after=None)
    parts = make_training(cycle=3, learning_rate=0.1)
    for epochs in (1, 3, 4, 8, 1000):
        run(parts, epochs, stop_after=None)
        parts = pickle.loads(pickle.dumps(parts))
    assert parts.epoch == whole.epoch
    assert whole.epoch in (9, 21, 45, 93)
    assert parts.history["validation_loss"] == whole.history["validation_loss"]


def test_gradients_are_none_and_models_in_eval_mode_afterwards():
    training = make_training()
    run(training, 2)
    assert all(p.grad is None for p in training.pair.parameters())
    assert not training.pair.training


def test_a_shared_embedding_is_stepped_once_per_step():
    shared = nn.Linear(1, 1)
    flow, energy = GaussianFlow(), QuadraticEnergy()
    flow.embed = energy.embed = shared
    flow_group, energy_group = TrainedPair(
        flow, energy, TrainingOptions()
    ).parameter_groups()
    assert set(map(id, shared.parameters())) <= set(map(id, flow_group))
    assert not set(map(id, flow_group)) & set(map(id, energy_group))


def test_every_epoch_visits_pairs_once_in_full_batches():
    batches = make_batches(range(50), batch_size=20)
    theta, _ = make_data()
    epoch = [batch.theta for batch in batches.shuffled(0)]
    assert [len(batch) for batch in epoch] == [20, 20] == [20] * len(batches)
    seen = torch.cat(epoch).flatten().tolist()
    assert len(set(seen)) == 40
    assert set(seen) <= set(theta[:50].flatten().tolist())
    ordered = torch.cat([batch.theta for batch in batches.ordered()])
    assert torch.equal(ordered, theta[:50])


def test_pooling_is_redone_from_the_loss_and_the_weights_that_it_began_with():
    """Although the networks have become better before the interrupt."""
    training = make_training()
    run(training, 3)
    with training.call():
        begun = training.pooling(has_converged=False)
        start = training.recall_followed()
        run(training, 12)
        training.was_interrupted = True
    assert training.best_loss < start
    with training.call():
        assert training.pooling(has_converged=True) is begun
        assert training.recall_followed() == start
        for name, value in training.pair.state_dict().items():
            assert torch.equal(value, begun.weights[name])
        training.load_best()
        assert training.recall_followed() == training.best_loss
    assert training.unfinished is None
