"""Pareto smoothing."""

import numpy as np
import pytest

from sbi_jeffreys.sampling.psis import pareto_smoothed

RNG = np.random.default_rng(0)


def pareto_tail(k, shape, rng):
    """Log weights with a generalized Pareto distribution of shape k."""
    return np.log((rng.uniform(size=shape) ** -k - 1) / k)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_is_the_tails_shape(k):
    """Of 20 fits to 424 values each, the mean is off by about 0.07/√20 = 0.02, and, by
    the estimator's prior, by less than 0.01: 0.08 fails by chance in fewer than 1e-3."""
    log_weights = pareto_tail(k, (4, 5, 20_000), np.random.default_rng(1))
    _, got = pareto_smoothed(log_weights)
    assert got.shape == (4, 5)
    assert abs(got.mean() - k) < 0.08


def test_smoothed_weights_are_normalised_and_keep_order_and_body():
    log_weights = pareto_tail(0.8, (3, 1000), np.random.default_rng(2)) + 500
    before = log_weights.copy()
    smoothed, _ = pareto_smoothed(log_weights)
    np.testing.assert_array_equal(log_weights, before)
    np.testing.assert_allclose(np.exp(smoothed).sum(-1), 1)
    for raw, new in zip(log_weights, smoothed, strict=True):
        order = np.argsort(raw)
        assert (np.diff(new[order]) >= 0).all()
        shift = raw[order] - new[order]
        np.testing.assert_allclose(shift[:900], shift[0], atol=1e-9)
        assert abs(shift[-90:] - shift[0]).max() > 1e-3
        assert new.max() <= raw.max() - shift[0] + 1e-9


@pytest.mark.parametrize("num", [1, 2, 10, 30, 4000])
@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_equal_weights_have_no_tail(num, noise):
    log_weights = 3 + noise * RNG.normal(size=(2, num))
    smoothed, k = pareto_smoothed(log_weights)
    assert (k == -np.inf).all()
    np.testing.assert_allclose(smoothed, -np.log(num), atol=1e-6)


def test_rounding_in_single_precision_is_no_tail():
    """An exact flow: both log densities are the same sum of 30 terms, in other orders."""
    terms = 3 * np.random.default_rng(4).normal(size=(200, 4000, 30)).astype(np.float32)
    backward = terms[..., ::-1].cumsum(-1)[..., -1]
    log_weights = terms.cumsum(-1)[..., -1] - backward
    assert 1e-6 < abs(log_weights).max() < 1e-4
    assert (pareto_smoothed(log_weights)[1] == -np.inf).all()
    assert (pareto_smoothed(log_weights.astype(float))[1] > -np.inf).all()


def test_a_short_tail_in_single_precision_is_a_tail():
    log_weights = 1e-3 * pareto_tail(0.5, (5, 4000), np.random.default_rng(5))
    _, k = pareto_smoothed(log_weights.astype(np.float32))
    assert np.isfinite(k).all()
    np.testing.assert_allclose(k, pareto_smoothed(log_weights)[1], atol=0.02)


@pytest.mark.parametrize("at_the_bound", [94, 500])  # 94 are smoothed of 1,000
def test_bounded_weights_have_no_tail(at_the_bound):
    log_weights = np.sort(RNG.normal(size=1000))
    log_weights[-at_the_bound:] = log_weights[-at_the_bound]
    smoothed, k = pareto_smoothed(log_weights)
    assert k == -np.inf
    np.testing.assert_allclose(smoothed - log_weights, smoothed[0] - log_weights[0])


@pytest.mark.parametrize("num", [2, 5, 20])
def test_few_weights_cannot_be_judged(num):
    smoothed, k = pareto_smoothed(RNG.normal(size=num))
    assert k == np.inf
    assert np.exp(smoothed).sum() == pytest.approx(1)


def test_weights_above_a_plateau_cannot_be_judged_by_four():
    log_weights = np.zeros(1000)
    log_weights[:4] = [1, 2, 3, 4]
    assert pareto_smoothed(log_weights)[1] == np.inf


def test_weights_of_zero_stay_zero_and_do_not_matter():
    some = pareto_tail(0.5, 1000, np.random.default_rng(3))
    expected, k = pareto_smoothed(some)
    padded = np.concatenate([np.full(500, -np.inf), some, np.full(500, -np.inf)])
    smoothed, padded_k = pareto_smoothed(padded)
    assert padded_k == k
    np.testing.assert_allclose(smoothed[500:-500], expected)
    assert np.isneginf(smoothed[:500]).all()
    far_below = np.where(np.isneginf(padded), -2000.0, padded)
    assert pareto_smoothed(far_below)[1] == k
    one = np.full(100, -np.inf)
    one[7] = 2.0
    smoothed, k = pareto_smoothed(one)
    assert k == np.inf
    assert smoothed[7] == 0


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (np.array(1.0), r"shape \(\.\.\., N\)"),
        (np.empty((3, 0)), r"got \(3, 0\)"),
        (np.array([0.0, np.nan]), "got 1 that are NaN"),
        (np.array([0.0, np.inf]), "got 1 that are NaN or infinite"),
        (
            np.array([[0.0, 0.0], [-np.inf, -np.inf]]),
            "got 1 rows where all weights are zero",
        ),
    ],
)
def test_weights_that_are_none_are_refused(log_weights, message):
    with pytest.raises(ValueError, match=message):
        pareto_smoothed(log_weights)
