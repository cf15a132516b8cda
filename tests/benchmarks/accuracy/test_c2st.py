"""Classifiers with known accuracies."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from benchmarks.accuracy import c2st
from benchmarks.accuracy.c2st import (
    c2st_mlp,
    c2st_mlp_fold,
    c2st_random_forest,
    c2st_random_forest_fold,
)


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


@pytest.mark.very_slow
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
def test_mlp_is_reproducible_and_leaves_the_random_state(classify, monkeypatch):
    monkeypatch.setattr(c2st, "PATIENCE", 1)
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
