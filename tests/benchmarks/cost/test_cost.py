"""The command `cost`: what a row has, and what the page makes of rows."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import commands
from benchmarks.cost import page, trainings
from benchmarks.methods import problem
from benchmarks.tasks.sbibm import TASKS
from sbi_jeffreys.training.loop import JeffreysTraining


def row(method, seconds, nll, corrected=np.nan, task="two_moons", seed=0):
    values = dict.fromkeys(trainings.Row._fields, 1.0)
    named = {
        "task": task,
        "method": method,
        "num_simulations": 1000,
        "seed": seed,
        "seconds": seconds,
        "nll": nll,
        "nll_corrected": corrected,
        "commit": "abc",
        "device": "cpu",
    }
    return {**values, **named, "measured_with": "a machine"}


@pytest.fixture
def rows():
    return pd.DataFrame(
        [
            row("npe_nsf", 10.0, 2.0),
            row("jnpe", 30.0, 1.5, 1.25),
            row("npe_nsf", 20.0, 3.0, task="slcp"),
            row("jnpe", 100.0, 1.0, 0.5, task="slcp"),
            row("jnpe", 5.0, 0.0, 0.0, task="sir"),  # without NPE beside it
        ]
    )


def test_ratios_and_gains_are_those_of_the_same_simulations(rows):
    joined = page._joined(rows)
    ours = joined[joined.method == "jnpe"].set_index("task")
    assert list(ours.index) == ["two_moons", "slcp"]
    assert list(ours.ratio) == [3.0, 5.0]
    assert list(ours.gain) == [0.5, 2.0]
    assert list(ours.gain_corrected) == [0.75, 2.5]
    text = page.report(rows)
    (line,) = [line for line in text.splitlines() if line.startswith("| jnpe |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["jnpe", "2", "0", "65"]
    assert cells[5:9] == ["4.0", "5.0", "1.25", "1.62"]


def test_the_figure_has_a_panel_for_each_budget(rows):
    more = rows.assign(num_simulations=100)
    figure = page.figure(pd.concat([rows, more]))
    assert [axis.get_title() for axis in figure.axes] == [
        "100 simulations",
        "1,000 simulations",
    ]


def test_phases_add_up_to_the_training(monkeypatch):
    clock = iter(range(100))

    def run(self):
        return "ran"

    monkeypatch.setattr(JeffreysTraining, "run", run)
    monkeypatch.setattr(JeffreysTraining, "follow", run)
    with trainings._phases(lambda: next(clock)) as spent:
        training = object.__new__(JeffreysTraining)
        assert [training.run(), training.run(), training.follow()] == ["ran"] * 3
    assert spent == {"run": 2, "follow": 1}
    assert JeffreysTraining.run is run


def test_a_run_is_resumed_and_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(problem, "NUM_TEST_PAIRS", 20)
    monkeypatch.setattr(trainings, "NUM_SAMPLES", 50)
    monkeypatch.setattr(trainings, "NUM_X", 3)
    monkeypatch.setattr(trainings, "OBSERVATIONS", ())
    monkeypatch.setattr(trainings, "_c2st", lambda task, posterior: 0.5)
    words = ["cost", "--tasks", "queue", "--methods", "npe_nsf", "jnpe_5", "--budgets"]
    words += ["60", "--seeds", "0", "--output", str(tmp_path)]
    commands.main(words)
    finished = pd.read_csv(tmp_path / "cost.csv")
    assert list(finished.method) == ["npe_nsf", "jnpe_5"]
    assert finished[["seconds", "nll", "sampling"]].notna().all(axis=None)
    ours = finished[finished.method == "jnpe_5"].iloc[0]
    assert ours.epochs == 5
    assert ours.networks + ours.pool + ours.following == pytest.approx(ours.seconds)
    assert "## 60 simulations" in (tmp_path / "cost.md").read_text()
    assert (tmp_path / "cost.png").stat().st_size > 1000

    def fails(*_, **__):
        raise AssertionError("a finished row was computed again")

    monkeypatch.setattr(trainings, "measure", fails)
    commands.main(words)


def test_tasks_are_those_of_sbibm_and_the_unseen():
    assert len(trainings.ALL_TASKS) == 15
    assert set(TASKS) - set(trainings.ALL_TASKS) == {"folded_gaussian"}
    assert torch.is_tensor(trainings.ALL_TASKS["queue"].simulate(2, 0)[1])
