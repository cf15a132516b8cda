"""The command `controls`: the controls are what they say, and the page shows the rows."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import commands
from benchmarks.controls import page, trainings
from benchmarks.methods import problem
from benchmarks.rows import curve, numbers
from benchmarks.tasks.sbibm import TASKS
from sbi_jeffreys import JNPE
from sbi_jeffreys.pool.opinion_pool import Pool


def row(task, method, nll, corrected, seed=0, over=0.0, **values):
    shares = curve(np.array(trainings.LEVELS) + over)
    return {
        "task": task,
        "method": method,
        "num_simulations": 1000,
        "seed": seed,
        "seconds": 1.0,
        "nll": nll,
        "nll_corrected": corrected,
        "covered": shares,
        "covered_corrected": shares,
        "commit": "abc",
        "measured_with": "a machine",
        **values,
    }


def line_of(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_has_means_over_seeds_and_tasks():
    rows = pd.DataFrame(
        [
            row("two_moons", "npe_nsf", 2.0, np.nan, over=-0.04),
            row("two_moons", "npe_nsf", 4.0, np.nan, seed=1, over=-0.02),
            *(row("two_moons", "flow alone", 1.0, 9.0, seed) for seed in (0, 1)),
            *(row("two_moons", "jnpe", 0.5, 0.25, seed) for seed in (0, 1)),
            row("sir", "npe_nsf", 8.0, np.nan),  # others are not finished
            row("slcp", "npe_nsf", 7.0, np.nan),
            row("slcp", "flow alone", 5.0, 9.0),
            row("slcp", "jnpe", 1.5, 0.75, over=0.03),
        ]
    )
    text = page.report(rows)
    titles = ["npe_nsf", "flow alone, flow", "jnpe, flow", "jnpe, corrected"]
    assert line_of(text, "task") == ["task", *titles]
    assert line_of(text, "two_moons") == [
        *("two_moons", "3.00 ± 1.41", "1.00 ± 0.00", "0.50 ± 0.00", "0.25 ± 0.00"),
    ]
    assert line_of(text, "mean") == ["mean", "5.00", "3.00", "1.00", "0.50"]
    assert line_of(text, "npe_nsf")[1:] == ["-2.0 (-4.0)"] * 4
    assert line_of(text, "jnpe, flow")[1:] == ["+1.0 (+0.0)"] * 4
    assert "sir" not in text


def trained(control, **options):
    torch.manual_seed(0)
    task = TASKS["gaussian_mixture"]
    trainer = JNPE(
        task.prior, show_progress_bars=False, **trainings.CONTROLS[control], **options
    )
    trainer.append_simulations(*task.simulate(60, 0))
    trainer.train(max_num_epochs=3)
    return trainer.build_posterior(sample_with="energy").pair.energy


@pytest.mark.filterwarnings("ignore")
def test_the_pool_alone_has_networks_that_are_the_prior():
    energy = trained("pool alone")
    networks = energy.net.net if isinstance(energy.net, Pool) else energy.net
    z, features = torch.randn(5, 3, 2), torch.randn(3, 2)
    assert not networks(z, features).any()
    networks = trained("without agreement").net
    assert networks(z, features).any()


@pytest.mark.filterwarnings("ignore:.*too coarse")
def test_intervals_of_the_exact_posterior_hold_what_they_say():
    """Five standard errors of 400 independent pairs with ten parameters."""

    class Exact:
        def sample_batched(self, shape, x, **_):
            return x / 2 + 0.05**0.5 * torch.randn(*shape, *x.shape)

    test = TASKS["gaussian_linear"].simulate(400, 0)
    shares = torch.tensor(numbers(trainings._covered(Exact(), test, 400)))
    levels = torch.tensor(trainings.LEVELS)
    errors = (levels * (1 - levels) / 4000).sqrt()
    assert ((shares - levels).abs() < 5 * errors).all()


def test_a_run_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(problem, "NUM_TEST_PAIRS", 30)
    monkeypatch.setattr(trainings, "NUM_X", {"flow": 30, "corrected": 10})
    original = JNPE.train
    monkeypatch.setattr(JNPE, "train", lambda self: original(self, max_num_epochs=2))
    words = ["controls", "--tasks", "queue", "--methods", "npe_nsf", "pair", "--budgets"]
    commands.main([*words, "60", "--seeds", "0", "--output", str(tmp_path)])
    finished = pd.read_csv(tmp_path / "controls.csv")
    assert list(finished.method) == ["npe_nsf", "pair"]
    assert finished[["seconds", "nll", "covered"]].notna().all(axis=None)
    assert "## 60 simulations, seeds 0" in (tmp_path / "controls.md").read_text()
