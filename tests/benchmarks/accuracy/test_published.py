"""Published values and their sources."""

import pytest

from benchmarks.accuracy.published import (
    BARS,
    best_amortized,
    best_flow,
    plain_npe,
    published,
)
from benchmarks.tasks.sbibm import TASKS


def test_published_values_are_accuracies_with_sources():
    rows = published()
    assert rows.c2st_mean.between(0.49, 1).all()
    assert rows[["task", "method", "classifier", "source"]].notna().all(axis=None)
    assert set(BARS) <= set(rows.task) & set(TASKS)
    assert plain_npe("slcp", 1000).c2st == pytest.approx(0.968, abs=1e-3)
    assert best_flow("slcp", 1000).c2st == pytest.approx(0.941, abs=1e-3)
    assert best_amortized("slcp", 1000).method == "Simformer_undirected"
    assert best_flow("folded_gaussian", 1000) is None
