"""The command `rounds`: what a row has, and what the page makes of rows."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import commands
from benchmarks.rounds import page, runs
from benchmarks.tasks.references import Reference


def row(method, c2st, observation=1, task="sir", num=1000):
    values = (task, method, num, 0, observation, c2st, 0.1, 1.0, 60.0, "abc")
    named = dict(zip(runs.Row._fields, values, strict=True))
    return {**named, "measured_with": "a machine"}


@pytest.fixture
def rows():
    return pd.DataFrame(
        [row("jnpe_rounds", 0.51), row("jnpe_rounds", 0.53, 2), row("npe_c", 0.7)]
    )


def test_the_page_has_means_and_the_best_published_value(rows):
    (line,) = [s for s in page.report(rows).splitlines() if "| jnpe_rounds |" in s]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:6] == ["sir", "jnpe_rounds", "2", "0", "0.520", "0.530"]
    assert cells[-1].startswith("0.525 (TSNPE-PFN")


def test_the_figure_has_a_panel_for_each_task(rows):
    more = rows.assign(task="slcp")
    figure = page.figure(pd.concat([rows, more]))
    assert [axis.get_title() for axis in figure.axes] == ["sir", "slcp"]


def test_rounds_have_all_simulations():
    assert sum(runs._sizes(1000)) == 1000
    assert runs._sizes(103) == [21, 21, 21, 20, 20]


def test_a_run_is_resumed_and_writes_its_page(tmp_path, monkeypatch):
    """The reference is the prior's samples, from which those of the task differ."""
    calls = []

    def drawn(task, x_o, num, seed):
        calls.append((task.name, num, seed))
        return torch.randn(100, 2)

    def exact(task, observation):
        return Reference(torch.zeros(1, 2), torch.zeros(1, 2), torch.rand(100, 2))

    monkeypatch.setitem(runs.METHODS, "jnpe_rounds", drawn)
    monkeypatch.setattr(runs, "reference", exact)
    words = ["rounds", "--tasks", "two_moons", "--methods", "jnpe_rounds", "--budgets"]
    words += ["100", "--seeds", "3", "--observations", "1", "--output", str(tmp_path)]
    for _ in range(2):
        commands.main(words)
    assert calls == [("two_moons", 100, 3)]
    finished = pd.read_csv(tmp_path / "rounds.csv")
    assert finished.c2st[0] > 0.6
    assert np.isfinite(finished.sd_ratio[0])
    assert "## 100 simulations" in (tmp_path / "rounds.md").read_text()
    assert (tmp_path / "rounds.png").stat().st_size > 1000
