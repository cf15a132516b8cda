"""The command `formulations`: the problems are what they say, and so is the page."""

import pandas as pd
import pytest
import torch

from benchmarks.formulations import page, trainings
from benchmarks.formulations.problems import (
    FORMULATIONS,
    GRID,
    REFERENCE,
    STEP_SIZE_OF_PAIRS,
    Covering,
    EachPair,
    FixedReference,
    OneSided,
)
from benchmarks.tasks.sbibm import TASKS
from sbi_jeffreys.training.step import TrainedPair, TrainingOptions


@pytest.fixture(scope="module")
def data():
    task = TASKS["two_moons"]
    theta, x = task.simulate(80, 0)
    training, held_out = torch.arange(80).tensor_split([72])
    return trainings.Data(theta, x, task.prior, training, held_out)


@pytest.fixture(scope="module")
def models(data):
    torch.manual_seed(0)
    pair = data.new_pair(data.training)
    for parameter in pair.energy.net.parameters():  # it starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return pair


def gradients(pair, weights, batch):
    """Return the gradients of flow and energy of a weighted sum of the divergences."""
    pair.zero_grad()
    torch.manual_seed(1)
    (pair(*batch) * torch.tensor(weights)).sum().backward()
    return [
        torch.cat(
            [p.grad.flatten() for p in group if p.grad is not None] or [torch.zeros(1)]
        )
        for group in pair.parameter_groups()
    ]


def batch_of(data):
    return data.theta[:40], data.x[:40], torch.ones(40)


def test_a_fixed_reference_stays():
    reference = FixedReference(2.0)
    reference.update(-5.0)
    assert reference.subtract(torch.tensor([2.5, 1.0, 1.0])).tolist() == [0.5, 1.0, -1.0]


def test_one_sided_moves_the_flow_alone(data, models):
    options, batch = TrainingOptions(), batch_of(data)
    pair = OneSided(models.flow, models.energy, options)
    flow, energy = gradients(pair, (0.0, 1.0, 0.0), batch)
    assert flow.abs().max() > 0
    assert energy.abs().max() == 0
    both = gradients(TrainedPair(models.flow, models.energy, options), (0, 1.0, 0), batch)
    assert both[1].abs().max() > 0
    assert all(parameter.requires_grad for parameter in models.energy.net.parameters())


def test_covering_adds_the_cross_entropy_of_the_energy_to_the_second_divergence(
    data, models
):
    options, batch = TrainingOptions(), batch_of(data)
    plain = TrainedPair(models.flow, models.energy, options)
    pair = Covering(models.flow, models.energy, options)
    torch.manual_seed(1)
    expected = plain(*batch)
    torch.manual_seed(1)
    found = pair(*batch)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    with torch.no_grad():
        flow, energy = models.given(batch[1])
        draws, log_p = flow.rsample_and_log_prob(2000)
        shares = (energy(draws) - log_p).softmax(0)
        cross_entropy = -(shares * flow.log_prob(draws)).sum(0).mean()
    torch.manual_seed(2)
    both = ((pair(*batch), plain(*batch)) for _ in range(200))
    added = torch.stack([(with_it - without)[1].detach() for with_it, without in both])
    # 200 means of 16 draws of 40 x; divergences of two draws add their own noise
    assert (added.mean() - cross_entropy).abs() < 5 * added.std() / 200**0.5 + 0.1


def test_each_pair_has_its_own_multipliers(data, models):
    levels = torch.zeros(80)
    pair = EachPair(models.flow, models.energy, TrainingOptions(), levels)
    theta, x, _ = batch_of(data)
    plain = TrainedPair(models.flow, models.energy, TrainingOptions())
    torch.manual_seed(1)
    expected = plain(theta, x, torch.ones(40))
    torch.manual_seed(1)
    found = pair(theta, x, torch.arange(40.0))
    torch.testing.assert_close(found, expected)
    nll = -models.flow.log_prob(theta[None], x)[0].detach()
    wanted = (1 + STEP_SIZE_OF_PAIRS * nll).clamp(min=0)
    torch.testing.assert_close(pair.multipliers[0, :40], wanted)
    assert (pair.multipliers[:, 40:] == 1).all()


def test_levels_are_those_of_flows_that_have_not_seen_the_pair(data, monkeypatch):
    seen = []
    original = trainings._run

    def run(step, data, batches, epochs, seed):
        seen.append(batches.indices)
        return original(step, data, batches, 1, seed)

    monkeypatch.setattr(trainings, "_run", run)
    levels = trainings.levels_out_of_fold(data, 0)
    assert (levels[data.training] != 0).all()
    assert (levels[data.held_out] == 0).all()
    parts = data.training.tensor_split(trainings.NUM_FOLDS)
    for rows, part in zip(seen, parts, strict=True):
        assert sorted([*rows.tolist(), *part.tolist()]) == data.training.tolist()


@pytest.mark.parametrize("name", FORMULATIONS)
def test_a_row_of_each_problem(name, monkeypatch):
    monkeypatch.setattr(trainings, "NUM_CYCLES", 0)
    monkeypatch.setattr(trainings, "NUM_TEST", 100)
    monkeypatch.setattr(trainings.Cycles, "ends", lambda self, num: 2)
    row = trainings.measure("two_moons", name, 60, 0)
    assert row[:4] == ("two_moons", name, 60, 0)
    assert row.epochs == 2
    losses = torch.tensor([row.flow_kept, row.flow_last, row.energy_kept])
    assert losses[:2].isfinite().all()
    assert bool(losses[2].isfinite()) is FORMULATIONS[name].trains_energy


def test_the_mixture_is_compared_with_the_grid():
    keys = trainings.keys([trainings.MIXTURE, "queue"], [250, 1000], [1, 2])
    planar = [key for key in keys if key[0] == trainings.MIXTURE]
    assert len(planar) == 2 * len(FORMULATIONS | GRID)
    assert len(GRID) == 25
    assert len(keys) - len(planar) == 4 * len(FORMULATIONS)
    assert len(set(keys)) == len(keys)


def row(name, seed, loss, task="queue", commit="abc"):
    losses = dict.fromkeys(page.JUDGED, loss)
    values = (task, name, 250, seed, 2.0, 3)
    rest = {"z_last": 1.0, "multipliers": "[1.0, 2.0, 3.0]", "commit": commit}
    named = dict(zip(trainings.Row._fields[:6], values, strict=True))
    return {**named, **losses, **rest, "measured_with": "a machine"}


def cells_of(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_differences_are_paired_and_judged_by_their_standard_errors():
    rows = pd.DataFrame(
        [row(REFERENCE, seed, 10.0 * seed) for seed in range(3)]
        + [row("resilient", seed, 10.0 * seed - 1 - 0.1 * seed) for seed in range(3)]
        + [row("inequality", seed, 10.0 * seed + (-1) ** seed) for seed in range(3)]
    )
    text = page.report(rows)
    assert cells_of(text, "resilient")[1] == "-1.100 (1 / 0)"
    assert cells_of(text, "inequality")[1] == "+0.333 (0 / 0)"
    assert "| resilient | -1.100 ± 0.058 |" in text
    with pytest.raises(ValueError, match="one commit"):
        page.report(pd.concat([rows, rows.assign(commit="def")]))


def test_weightings_of_the_grid_are_counted_seed_by_seed():
    mixture = trainings.MIXTURE
    rows = [row(name, 0, 2.0 + i, mixture) for i, name in enumerate(GRID)]
    rows += [row(name, 1, 3.0 - 0.01 * i, mixture) for i, name in enumerate(GRID)]
    rows += [row("resilient", seed, 2.5, mixture) for seed in (0, 1)]
    text = page.report(pd.DataFrame(rows))
    assert cells_of(text, "resilient")[5] == "24 25"
