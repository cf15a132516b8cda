"""Cells of the benchmark: what is finished is not computed again."""

from dataclasses import dataclass
from pathlib import Path

import pytest

import benchmarks
from benchmarks import rows
from benchmarks.accuracy import cells, standings
from benchmarks.accuracy.cells import Cell, missing, read, run
from benchmarks.commands import main
from benchmarks.methods.registry import METHODS, TRAININGS
from benchmarks.methods.training import Fit, Training
from benchmarks.tasks.sbibm import TASKS

TASK = "folded_gaussian"
RESULTS = Path(benchmarks.__file__).parent / "results"


class ExactPosterior:
    """The true posterior of the task, or one shifted by a unit in each parameter."""

    def __init__(self, shift):
        self.shift = shift

    def sample(self, shape, x, show_progress_bars):
        return TASKS[TASK].exact_posterior(x, *shape) + self.shift


@dataclass
class StubTraining(Training):
    """Counts its trainings; the second method's posterior is wrong."""

    count: int = 0
    methods = ("exact", "shifted")

    def fit(self, prior, theta, x, test, seed):
        self.count += 1
        return [Fit(ExactPosterior(shift), 1.0, 3, 4.0) for shift in (0.0, 1.0)]


class FailingTraining(StubTraining):
    methods = ("failing",)

    def fit(self, prior, theta, x, test, seed):
        raise RuntimeError("no luck")


@pytest.fixture
def stub(monkeypatch):
    training = StubTraining()
    monkeypatch.setitem(TRAININGS, "stub", training)
    monkeypatch.setitem(TRAININGS, "failing", FailingTraining())
    for method, name in (("exact", "stub"), ("shifted", "stub"), ("failing", "failing")):
        monkeypatch.setitem(METHODS, method, name)
    calls = []
    accuracy = {"exact": 0.5, "shifted": 0.9}

    def classify(reference, samples):
        calls.append(len(samples))
        shifted = samples.mean() > 0.5
        return accuracy["shifted" if shifted else "exact"]

    monkeypatch.setitem(cells.CLASSIFIERS, "rf", classify)
    monkeypatch.setitem(cells.CLASSIFIERS, "mlp", classify)
    training.calls = calls
    return training


def grid(**changes):
    options = {
        "tasks": [TASK],
        "methods": ["exact", "shifted"],
        "budgets": [20],
        "seeds": [0],
        "observations": [1, 2],
    }
    return cells.cells(**(options | changes))


def test_cells_come_seed_by_seed():
    wanted = grid(seeds=[0, 1], tasks=["a", "b"], observations=[1])
    assert [cell.seed for cell in wanted] == [0] * 4 + [1] * 4
    assert len(set(wanted)) == 8


def test_nothing_is_computed_twice(stub, tmp_path):
    assert run(grid(observations=[1]), ["rf"], tmp_path, jobs=1) == 0
    assert (stub.count, len(stub.calls)) == (1, 2)
    assert run(grid(observations=[1]), ["rf"], tmp_path, jobs=1) == 0
    assert (stub.count, len(stub.calls)) == (1, 2)

    run(grid(), ["rf"], tmp_path, jobs=1)  # another observation: sampled, not trained
    assert (stub.count, len(stub.calls)) == (1, 4)
    run(grid(), ["rf", "mlp"], tmp_path, jobs=1)  # another classifier, alone
    assert (stub.count, len(stub.calls)) == (1, 8)
    run(grid(seeds=[1]), ["rf"], tmp_path, jobs=1)
    assert stub.count == 2

    finished = read([tmp_path / "cells.csv"])
    assert len(finished) == 8
    of_first = finished[finished.seed == 0]
    assert of_first[["c2st_rf", "c2st_mlp"]].notna().all(axis=None)
    assert set(of_first[of_first.method == "exact"].c2st_rf) == {0.5}
    assert set(of_first[of_first.method == "shifted"].c2st_rf) == {0.9}
    assert set(finished.training_seconds) == {4.0}
    assert not missing(grid(seeds=[0, 1]), finished, ["rf"])
    assert len(missing(grid(seeds=[0, 1]), finished, ["mlp"])) == 4
    assert not missing(grid(seeds=[0, 1]), finished, ["rf_fold"])  # one of rf's folds
    assert len(missing(grid(seeds=[0, 1]), finished, ["mlp_fold"])) == 4


def test_rows_name_the_device_of_the_training(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "measured_with", lambda device: f"device {device}")
    stub.device = "cuda:1"
    run(grid(), ["rf"], tmp_path, jobs=1)
    assert set(read([tmp_path / "cells.csv"]).measured_with) == {"device cuda:1"}


def test_an_interrupted_run_continues(stub, tmp_path, monkeypatch):
    measure, done = cells._measure, []

    def measure_one(*args):
        if done:
            raise KeyboardInterrupt
        done.append(args)
        return measure(*args)

    with monkeypatch.context() as context:
        context.setattr(cells, "_measure", measure_one)
        with pytest.raises(KeyboardInterrupt):
            run(grid(), ["rf"], tmp_path, jobs=1)
    assert len(read([tmp_path / "cells.csv"])) == 1
    run(grid(), ["rf"], tmp_path, jobs=1)
    assert len(read([tmp_path / "cells.csv"])) == 4
    assert (stub.count, len(stub.calls)) == (1, 4)


@pytest.mark.parametrize("damage", ["cut", "flipped", "of another version"])
def test_a_training_whose_file_is_damaged_is_made_again(damage, stub, tmp_path, capsys):
    run(grid(), ["rf"], tmp_path, jobs=1)
    (path,) = (tmp_path / "trained").glob("*.pt")
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    damaged = {"cut": whole[:-100], "flipped": changed, "of another version": b"PK"}
    path.write_bytes(damaged[damage])
    assert run(grid(observations=[3]), ["rf"], tmp_path, jobs=1) == 0
    assert stub.count == 2
    assert f"{path.name}" in capsys.readouterr().err
    assert run(grid(observations=[4]), ["rf"], tmp_path, jobs=1) == 0
    assert stub.count == 2


def test_cells_of_several_commits_are_not_mixed(stub, tmp_path, monkeypatch):
    """Nor are trainings, of which no cell may be finished yet."""
    run(grid(), ["rf"], tmp_path, jobs=1)
    assert set(read([tmp_path / "cells.csv"]).commit) == {cells.commit()}
    for module in (cells, rows):
        monkeypatch.setattr(module, "commit", lambda: "def5678")
    assert run(grid(), ["rf"], tmp_path, jobs=1) == 0  # nothing is missing
    with pytest.raises(ValueError, match="of commit def5678, which this code is, got"):
        run(grid(observations=[3]), ["rf"], tmp_path, jobs=1)
    (tmp_path / "cells.csv").unlink()
    assert run(grid(), ["rf"], tmp_path, jobs=1) == 0
    assert stub.count == 2
    assert set(read([tmp_path / "cells.csv"]).commit) == {"def5678"}


def test_the_commit_of_older_files_is_unknown():
    finished = read([RESULTS / "accuracy_b8a5701.csv"])
    assert set(finished.commit) == {"unknown"}
    assert "Commit unknown; sbi 0.27.0" in standings.report(finished)


def test_what_fails_is_told_and_the_rest_is_done(stub, tmp_path, capsys):
    failed = run(grid(methods=["failing", "exact"]), ["rf"], tmp_path, jobs=1)
    assert failed == 1
    assert "no luck" in capsys.readouterr().err
    assert set(read([tmp_path / "cells.csv"]).method) == {"exact"}


def test_command_runs_by_default(stub, tmp_path, monkeypatch):
    wanted = []

    devices = []

    def record(cells_wanted, classifiers, folder, jobs, device):
        wanted.extend(cells_wanted)
        devices.append(device)
        return 2

    monkeypatch.setattr(cells, "run", record)
    options = ["--tasks", TASK, "--seeds", "3", "--observations", "1", "4"]
    with pytest.raises(SystemExit, match="2 trainings or cells failed"):
        main([*options, "--methods", "npe_nsf", "--output", str(tmp_path)])
    assert wanted == [
        Cell(TASK, "npe_nsf", 1000, 3, 1),
        Cell(TASK, "npe_nsf", 1000, 3, 4),
    ]
    assert devices == ["cpu"]
