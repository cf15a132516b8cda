"""Cells that are resumed, classifiers with known accuracies, tables and figures."""

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from scipy.stats import norm
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from benchmarks import cells, methods, standings
from benchmarks.__main__ import main
from benchmarks.c2st import (
    c2st_mlp,
    c2st_mlp_fold,
    c2st_random_forest,
    c2st_random_forest_fold,
)
from benchmarks.cells import Cell, missing, read, run
from benchmarks.methods import METHODS, TRAININGS, Fit, Training
from benchmarks.published import (
    BARS,
    best_amortized,
    best_flow,
    plain_npe,
    published,
)
from benchmarks.tasks import TASKS

TASK = "folded_gaussian"


class ExactPosterior:
    """The true posterior of the task, or one shifted by a unit in each parameter."""

    def __init__(self, shift):
        self.shift = shift

    def sample(self, shape, x, show_progress_bars):
        return TASKS[TASK].exact_posterior(x, *shape) + self.shift

    def sample_batched(self, shape, x, **kwargs):
        rows = [TASKS[TASK].exact_posterior(row[None], *shape) for row in x]
        return torch.stack(rows, 1) + self.shift


@dataclass
class StubTraining(Training):
    """Counts its trainings; the second method's posterior is wrong."""

    count: int = 0
    batched_options: dict = field(default_factory=dict)
    methods = ("exact", "shifted")

    def fit(self, prior, theta, x, test, seed):
        self.count += 1
        return [Fit(ExactPosterior(shift), 1.0, 2.0, 3, 4.0) for shift in (0.0, 1.0)]


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
    monkeypatch.setattr(cells, "NUM_CALIBRATION_PAIRS", 100)
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


def test_what_fails_is_told_and_the_rest_is_done(stub, tmp_path, capsys):
    failed = run(grid(methods=["failing", "exact"]), ["rf"], tmp_path, jobs=1)
    assert failed == 1
    assert "no luck" in capsys.readouterr().err
    assert set(read([tmp_path / "cells.csv"]).method) == {"exact"}


def test_calibration_errors_tell_a_wrong_posterior(stub, tmp_path):
    """A uniform's mean distance from its quantiles is about 0.03 at N = 100."""
    run(grid(observations=[1]), ["rf"], tmp_path, jobs=1)
    finished = read([tmp_path / "cells.csv"]).set_index("method")
    assert finished.sbc_error["exact"] < 0.08 < 0.2 < finished.sbc_error["shifted"]
    assert finished.tarp_error["exact"] < 0.08


def test_mlp_on_equal_samples_is_at_chance():
    """Within 4.5 standard errors of a half: by chance in 7e-6."""
    x, y = torch.randn(2, 4000, 2, generator=torch.Generator().manual_seed(0))
    assert abs(c2st_mlp(x, y) - 0.5) < 4.5 * 0.5 / math.sqrt(8000)


def test_mlp_comes_near_the_best_accuracy_and_not_beyond():
    """Gaussians a distance d apart: the best is Φ(d / 2); 4.5 standard errors above."""
    x, y = torch.randn(2, 2000, 2, generator=torch.Generator().manual_seed(1))
    best = norm.cdf(math.sqrt(2) * 0.8 / 2)
    error = math.sqrt(best * (1 - best) / 4000)
    accuracy = c2st_mlp(x, y + 0.8)
    assert best - 0.02 - 4.5 * error < accuracy < best + 4.5 * error


@pytest.mark.slow
def test_mlp_agrees_with_scikit_learn():
    """Ten pairs of samples of 10,000, on the same folds: within 0.01 each.

    The first fold alone, of 4,000 samples: within 0.025, or 5 standard errors of the
    difference of two networks that disagree on a tenth of them.
    """
    generator = torch.Generator().manual_seed(2)
    for k in range(10):
        dim = (2, 3, 5)[k % 3]
        x, y = torch.randn(2, 10_000, dim, generator=generator)
        y = y * (1 - 0.05 * k) + 0.1 * (k % 4)
        rows = torch.cat([x, y]).sub(x.mean(0)).div(x.std(0)).numpy()
        labels = np.repeat([0, 1], 10_000)
        network = MLPClassifier((10 * dim, 10 * dim), max_iter=10_000, random_state=1)
        folds = KFold(5, shuffle=True, random_state=1)
        theirs = cross_val_score(network, rows, labels, cv=folds)
        assert abs(c2st_mlp(x, y) - theirs.mean()) < 0.01
        assert abs(c2st_mlp_fold(x, y) - theirs[0]) < 0.025


@pytest.mark.parametrize("classify", [c2st_mlp, c2st_mlp_fold])
def test_mlp_is_reproducible_and_leaves_the_random_state(classify):
    x, y = torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    assert classify(x, y) == classify(x, y)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("classify", [c2st_mlp, c2st_mlp_fold])
def test_mlp_refuses_what_is_not_finite(classify):
    x, y = torch.randn(2, 50, 2)
    y[3, 1] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        classify(x, y)


def test_a_fold_of_the_network_is_tested_on_what_it_did_not_see():
    """On equal samples within 4.5 standard errors of a half: by chance in 7e-6."""
    x, y = torch.randn(2, 4000, 2, generator=torch.Generator().manual_seed(6))
    assert abs(c2st_mlp_fold(x, y) - 0.5) < 4.5 * 0.5 / math.sqrt(1600)
    assert c2st_mlp_fold(x, y + 4) > 0.98


def test_random_forest_tells_far_samples_apart():
    x, y = torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(4))
    assert c2st_random_forest(x, y + 4) > 0.98
    assert c2st_random_forest(x, y) < 0.6


def test_a_fold_of_the_forest_is_that_of_sbi():
    """sbi's accuracy on five folds is the mean of ours on each; ours, the first's."""
    x, y = torch.randn(2, 150, 2, generator=torch.Generator().manual_seed(5))
    y = y + 0.5
    rows = torch.cat([x, y]).sub(x.mean(0)).div(x.std(0)).numpy()
    labels = np.repeat([0, 1], 150)
    folds = KFold(5, shuffle=True, random_state=1)
    scores = cross_val_score(
        RandomForestClassifier(random_state=1), rows, labels, cv=folds
    )
    assert scores.mean() == pytest.approx(c2st_random_forest(x, y), abs=0.02)
    assert c2st_random_forest_fold(x, y) == pytest.approx(scores[0], abs=0.02)


@pytest.mark.parametrize("name", ["rf", "mlp"])
def test_one_fold_stands_in_for_all(name):
    of_all = finished_cells()
    of_some = of_all.copy()
    measured = of_all[f"c2st_{name}"].notna() & (of_all.index % 2 == 0)
    of_some.loc[measured, f"c2st_{name}_fold"] = of_all[f"c2st_{name}"][measured]
    of_some.loc[measured, f"c2st_{name}"] = float("nan")
    assert measured.any()
    assert standings.report(of_some) == standings.report(of_all)


def finished_cells():
    """Two seeds, two observations; NPE is worse on one seed; a single MLP value."""
    rows = [
        {
            **Cell(task, method, 1000, seed, observation)._asdict(),
            "c2st_rf": 0.6 + 0.1 * seed + (0.02 if observation == 2 else 0),
            "nll": -1.0 - seed,
            "measured_with": "a machine",
        }
        for task in ("two_moons", TASK)
        for method in ("npe_nsf", "jnpe_flow")
        for seed in (0, 1)
        for observation in (1, 2)
    ]
    frame = pd.DataFrame(rows, columns=list(cells.COLUMNS))
    frame.loc[0, "c2st_mlp"] = 0.75
    return frame


def test_tables_hold_means_spreads_and_numbers():
    text = standings.report(finished_cells())
    header, _, moons, folded = [
        line for line in text.split("random forest")[1].splitlines() if line[:1] == "|"
    ][:4]
    assert header.startswith("| task | npe_nsf | jnpe_flow | bar |")
    # seeds' means are 0.61 and 0.71, those of observations 0.65 and 0.67
    assert moons.count("0.660 ± 0.071 (2×2; 0.014)") == 2
    assert "| 0.580 | 0.698 (NPE; RF z-scored) | 0.655 (NPE_hparam_sweep; " in moons
    assert "| 0.543 (AUNLE; as in source) |" in moons
    assert folded.endswith("(2×2; 0.014) |  |  |  |  |")
    assert "| two_moons | 0.750 (1×1) |  | 0.698 " in text  # the bar is the forest's
    assert "| two_moons | -1.500 ± 0.707 | -1.500 ± 0.707 |" in text
    assert "a machine" in text


def test_report_command_writes_tables_and_figures(tmp_path, capsys):
    finished_cells().to_csv(tmp_path / "cells.csv", index=False)
    output = tmp_path / "somewhere" / "table.md"
    paths = ["--cells", str(tmp_path / "cells.csv"), "--output", str(output)]
    main(["report", *paths])
    assert "![two_moons](table/two_moons.png)" in output.read_text()
    assert (output.with_suffix("") / "two_moons.png").stat().st_size > 1000
    assert "0.660 ± 0.071" in capsys.readouterr().out


def test_methods_have_looks_of_their_own():
    methods = list(METHODS)
    rows = [
        {**finished_cells().iloc[0], "task": task, "method": method}
        for task in ("two_moons", TASK)
        for method in methods
    ]
    drawn = []
    for _, figure in standings.figures(pd.DataFrame(rows, columns=list(cells.COLUMNS))):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        points = [h for h, name in zip(handles, labels, strict=True) if name in methods]
        looks = [
            (to_hex(point.get_facecolor()[0]), len(point.get_paths()[0].vertices))
            for point in points
        ]
        drawn.append(looks)
    assert len(set(drawn[0])) == len(methods)
    assert drawn[0] == drawn[1]


def test_report_without_cells_says_so(tmp_path):
    with pytest.raises(SystemExit, match="No finished cells"):
        main(["report", "--cells", str(tmp_path / "none.csv")])


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


def test_published_values_are_accuracies_with_sources():
    rows = published()
    assert rows.c2st_mean.between(0.49, 1).all()
    assert rows[["task", "method", "classifier", "source"]].notna().all(axis=None)
    assert set(BARS) <= set(rows.task) & set(TASKS)
    assert plain_npe("slcp", 1000).c2st == pytest.approx(0.968, abs=1e-3)
    assert best_flow("slcp", 1000).c2st == pytest.approx(0.941, abs=1e-3)
    assert best_amortized("slcp", 1000).method == "Simformer_undirected"
    assert best_flow(TASK, 1000) is None


def test_each_method_comes_from_one_training():
    names = [name for training in TRAININGS.values() for name in training.methods]
    assert len(names) == len(set(names)) == len(METHODS)


CHEAP = ["npe_maf", "npe_nsf_regularized", "npe_nsf_prepared", "jnpe"]


@pytest.mark.parametrize(
    "name",
    [
        *CHEAP,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in methods.TRAININGS
            if name not in CHEAP
        ),
    ],
)
def test_trainings_give_posteriors(name):
    task, training = TASKS["gaussian_mixture"], TRAININGS[name]
    test = task.simulate(50, seed=1)
    fits = training.fit(task.prior, *task.simulate(60, seed=0), test, seed=0)
    assert len(fits) == len(training.methods)
    for fit in fits:
        samples = fit.posterior.sample((20,), x=test[1][:1], show_progress_bars=False)
        assert samples.shape == (20, 2)
        assert samples.isfinite().all()
        assert fit.epochs > 0
        assert fit.training_seconds > 0
        if training.batched_options is None:
            assert math.isnan(fit.nll)
        else:
            assert math.isfinite(fit.nll)
            drawn = fit.posterior.sample_batched(
                (3,), test[1][:2], show_progress_bars=False, **training.batched_options
            )
            assert drawn.shape == (3, 2, 2)


def test_last_epoch_of_npe_differs_from_the_best():
    task = TASKS["gaussian_mixture"]
    test = task.simulate(50, seed=1)
    (fit,) = TRAININGS["npe_maf"].fit(task.prior, *task.simulate(60, 0), test, seed=0)
    assert fit.nll != fit.nll_last
