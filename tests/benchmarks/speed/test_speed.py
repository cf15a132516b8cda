"""The parts of the command `speed`, on small networks. No time is asserted."""

import math
from dataclasses import asdict, replace
from itertools import chain, repeat

import pytest
import torch
from torch import nn

from benchmarks.commands import main
from benchmarks.report import table
from benchmarks.speed import breakdown, contenders, growth, memory, race, sampling, steps
from benchmarks.speed.breakdown import Record, break_down
from benchmarks.speed.contenders import Case, JNPESteps, NPESteps
from benchmarks.speed.effort import Effort
from benchmarks.tasks.sbibm import TASKS
from sbi_jeffreys.trainer import JNPE

CASE = Case(100, dim=2, batch_size=30, num_particles=2, hidden_features=8)
EFFORT = Effort(
    rounds=1,
    num_steps=1,
    num_epochs=1,
    num_training_epochs=1,
    num_samples=200,
    num_observations=2,
    num_corrected_samples=3,
    num_corrected_observations=2,
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(section):
    """The cells of a Markdown table, with those of its header first."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


@pytest.mark.parametrize("kind", [NPESteps, JNPESteps])
def test_steps_go_on_from_epoch_to_epoch(kind, monkeypatch):
    """An epoch has 3 batches; the constructor has taken 5 steps."""
    stepper, num_epochs = kind(CASE), []
    epoch = kind.epoch

    def counted(self, number):
        num_epochs.append(number)
        return epoch(self, number)

    monkeypatch.setattr(kind, "epoch", counted)
    trained = stepper.trainer._neural_net if kind is NPESteps else stepper.training.pair
    before = [p.clone() for p in trained.parameters()]
    stepper.run(1)
    assert num_epochs == []
    stepper.run(4)
    assert num_epochs == [2, 3]
    after = zip(before, trained.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in after)


def test_both_get_the_same_simulations():
    (theta, x, _), (theta_2, x_2, _) = (
        trainer.get_simulations() for trainer in (CASE.npe(), CASE.jnpe())
    )
    assert torch.equal(theta, theta_2)
    assert torch.equal(x, x_2)


def test_ratios_are_taken_within_a_round():
    npe, jnpe = iter([1.0, 10.0, 2.0]), iter([2.0, 40.0, 6.0])
    result = contenders.compare(lambda: next(npe), lambda: next(jnpe), rounds=3)
    assert result == (2.0, 6.0, 3.0, 2.0, 4.0)


def test_steps_and_epochs():
    header, *rows = rows_of(steps.steps_and_epochs([CASE], EFFORT))
    assert header[4:] == ["per", "NPE, ms", "JNPE, ms", "ratio"]
    assert [row[:5] for row in rows] == [
        ["100", "2", "30", "2", "step"],
        ["100", "2", "30", "2", "epoch"],
    ]
    assert all(float(cell) > 0 for row in rows for cell in row[5:7])


def test_breakdown():
    header, *rows = rows_of(breakdown.breakdown([CASE], EFFORT))
    assert header == ["", "100 simulations"]
    assert [row[0] for row in rows][:2] == ["step, ms", "data: fetching a batch"]
    assert rows[-1][0] == "**floor / step**"


def test_products_are_recorded_forwards_and_backwards():
    """Of a linear layer: outputs, and the gradients of weights and inputs."""
    layer, inputs = nn.Linear(3, 4), torch.ones(5, 3, requires_grad=True)
    with Record() as record:
        layer(inputs).sum().backward()
    shapes = sorted(tuple(product(*operands).shape) for product, operands in record.calls)
    assert shapes == [(4, 3), (5, 3), (5, 4)]


def test_overhead_and_floor_follow_from_the_parts():
    result = break_down(JNPESteps(CASE), rounds=1, num_steps=1)
    parts = (result.data, result.forward, result.inverse, result.energy, result.optimizer)
    assert result.overhead == pytest.approx(result.step - sum(parts))
    assert result.floor == result.products / result.step
    assert result.num_products > 50
    assert result.flops > 0


@pytest.mark.filterwarnings("ignore:.*samples")
def test_sampling():
    header, *rows = rows_of(sampling.sampling(CASE, EFFORT))
    assert header == ["request", "NPE, 1/s", "JNPE, 1/s", "ratio of times"]
    assert len(rows) == 2 + 2 + 3
    assert [row[0] for row in rows[4:]] == ["NPE", "JNPE, flow", "JNPE, corrected"]


def test_three_posteriors_are_sampled_in_turn(monkeypatch):
    """NPE takes 4, 8, 2 s; the flow a half; the corrected posterior 6 times the flow."""
    calls = []

    class Posterior:
        def __init__(self, name):
            self.name = name

        def sample_batched(self, shape, x, **options):
            calls.append((self.name, shape, len(x)))

    def fake_seconds(function, device):
        function()
        npe = (4.0, 8.0, 2.0)[(len(calls) - 1) // 3]
        return {"npe": npe, "flow": npe / 2, "corrected": 3 * npe}[calls[-1][0]]

    monkeypatch.setattr(sampling, "seconds", fake_seconds)
    posteriors = [Posterior(name) for name in ("npe", "flow", "corrected")]
    section = sampling._corrected_sampling(posteriors, CASE, replace(EFFORT, rounds=3))
    assert calls == [("npe", (3,), 2), ("flow", (3,), 2), ("corrected", (3,), 2)] * 3
    header, *rows = rows_of(section)
    assert header == ["posterior", "1/s", "ratio of times", "goal"]
    assert rows == [
        ["NPE", "2", "", ""],
        ["JNPE, flow", "3", "0.50 (0.50 to 0.50) of NPE's", "at most 1: met"],
        [
            "JNPE, corrected",
            "0",
            "6.00 (6.00 to 6.00) of the flow's",
            "at most 5: missed",
        ],
    ]


def test_the_peak_is_that_of_training(monkeypatch):
    """512 MiB, held for a moment only, count. The process may give back some of what it
    had before."""
    train = JNPE.train

    def train_with_ballast(self, **options):
        torch.ones(2**27)
        return train(self, **options)

    monkeypatch.setattr(JNPE, "train", train_with_ballast)
    assert memory.peak_growth("jnpe", asdict(CASE), 1) > 256 * 2**20


@pytest.mark.very_slow
def test_memory():
    header, row = rows_of(memory.memory([CASE]))
    assert header == ["simulations", "NPE, MiB", "JNPE, MiB"]
    assert all(float(cell) > 0 for cell in row)


@pytest.mark.slow
def test_scaling():
    scales = {"num_simulations": (60,), "dim": (3,), "num_particles": (1,)}
    header, *rows = rows_of(growth.growth(CASE, EFFORT, {**scales, "batch_size": (40,)}))
    assert header == list(growth.GROWTH_COLUMNS)
    assert [row[0] for row in rows] == [
        "num_simulations = 60",
        "dim = 3",
        "num_particles = 1",
        "batch_size = 40",
    ]


@pytest.mark.filterwarnings("ignore:.*max_num_epochs")
def test_accuracy():
    (result,) = race.race([TASKS["two_moons"]], 100, [0], "cpu", max_num_epochs=2)
    assert result.jnpe.epochs == 2
    assert list(result.npe) == list(result.seconds_to) == ["maf", "nsf"]
    header, row = rows_of(race.report([result], 100))
    assert header == list(race.COLUMNS)
    assert row[:2] == ["two_moons", "0"]


@pytest.mark.filterwarnings("ignore:.*max_num_epochs")
def test_the_first_epoch_that_is_as_accurate_counts(monkeypatch):
    """NPE ends at 2 nats; JNPE has 3, then 2, and 1.9 from when its flow follows on."""
    nlls = chain([2.0, 0.0, 3.0, 2.0], repeat(1.9))
    monkeypatch.setattr(race, "flow_nll", lambda *args: next(nlls))
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr(race, "clock", lambda device: float(next(times)))
    (result,) = race.race([TASKS["two_moons"]], 100, [0], "cpu", max_num_epochs=2)
    # The clock is read at the start, before and after each test, and at the end.
    assert result.seconds_to == {"maf": 20.0, "nsf": math.inf}
    assert (result.jnpe.nll, result.jnpe.epochs) == (1.9, 2)
    assert result.jnpe.seconds >= 30.0


def test_the_command_writes_each_part_that_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(breakdown, "breakdown", lambda cases, effort: f"{effort.rounds}")
    monkeypatch.setattr(memory, "memory", lambda cases: str(len(cases)))
    output = tmp_path / "new" / "speed.md"
    options = ["--rounds", "7", "--seeds", "4", "--output", str(output)]
    main(["speed", "--parts", "breakdown", "memory", *options])
    title, setting, *sections = output.read_text().strip().split("\n\n")
    assert title.startswith("# Speed")
    for word in ("sbi 0.27", "torch", "nflows", "Python", "1 threads", "cpu", "seed 4"):
        assert word in setting
    assert sections == ["7", "2"]


def test_tables_are_markdown():
    assert table(["a", "b"], [[1, "c"]]) == "| a | b |\n| --- | --- |\n| 1 | c |"
