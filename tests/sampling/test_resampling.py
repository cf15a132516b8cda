"""Resampling with and without replacement, against exact probabilities."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sbi_jeffreys.sampling.importance_weights import smoothed_weights
from sbi_jeffreys.sampling.resampling import displaced_share, resample
from tests.closed_forms import gaussian_weights


@settings(max_examples=60, deadline=None)
@given(
    pool=st.integers(1, 60),
    share=st.floats(0.05, 1.0),
    spread=st.floats(0.0, 8.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_no_draw_is_chosen_twice(pool, share, spread, seed):
    torch.manual_seed(seed)
    num = max(1, int(share * pool))
    chosen = resample(spread * torch.randn(pool, 3), num)
    assert chosen.shape == (num, 3)
    for column in chosen.T.tolist():
        assert len(set(column)) == num


def test_draws_are_chosen_in_proportion_to_their_weights_or_always():
    """Over 20,000 repetitions a frequency has a standard error of at most 0.0036; 30 of
    them within five: a false failure in 50,000."""
    torch.manual_seed(0)
    weights = torch.tensor([8.0, 4.0, 1.0, 1.0, 0.5, 0.5])  # of 15; 3 are chosen
    # Three times 8/15 exceeds one, and so does 4/7 of the two that are left after it.
    expected = torch.tensor([1.0, 1.0, 1 / 3, 1 / 3, 1 / 6, 1 / 6])
    repeated = weights.log().unsqueeze(1).expand(-1, 20_000)
    counts = resample(repeated, 3).flatten().bincount(minlength=6) / 20_000
    torch.testing.assert_close(counts, expected, atol=0.018, rtol=0)
    counts = resample(repeated, 1).flatten().bincount(minlength=6) / 20_000
    torch.testing.assert_close(counts, weights / 15, atol=0.018, rtol=0)
    counts = resample(repeated, 3, replacement=True).flatten().bincount(minlength=6)
    torch.testing.assert_close(counts / 20_000, weights / 5, atol=0.018, rtol=0)


def test_the_first_is_chosen_like_the_others():
    """Of weights 2, 1 and 1, two are chosen: each comes first in half of the times that
    it is among them. 20,000 times: a standard error below 0.0036, within five."""
    torch.manual_seed(0)
    log_weights = torch.tensor([2.0, 1.0, 1.0]).log().unsqueeze(1).expand(-1, 20_000)
    first = resample(log_weights, 2)[0].bincount(minlength=3) / 20_000
    torch.testing.assert_close(first, torch.tensor([0.5, 0.25, 0.25]), atol=0.018, rtol=0)


def test_where_too_few_have_weight_these_are_chosen_again_and_no_other():
    log_weights = torch.full((50, 2), -torch.inf)
    log_weights[:3, 0] = 0.0
    log_weights[:, 1] = 0.0
    chosen = resample(log_weights, 6)
    assert chosen[:, 0].bincount(minlength=50)[:3].tolist() == [2, 2, 2]
    assert len(chosen[:, 1].unique()) == 6
    assert resample(torch.zeros(3, 1), 6).flatten().bincount().tolist() == [2, 2, 2]


def test_weights_that_all_but_vanish_choose_no_draw_without_any():
    logs = torch.cat([torch.linspace(0, -1480, 200), torch.full((50,), -torch.inf)])
    for num in (90, 97, 101):  # the 97th largest is the least above zero
        chosen = resample(logs[:, None], num)[:, 0]
        assert len(chosen.unique()) > 0.95 * num
        assert logs[chosen].isfinite().all()


@pytest.mark.parametrize("num", [0, 1, 50])
def test_none_one_or_all_may_be_chosen(num):
    chosen = resample(torch.randn(50, 2), num)
    assert chosen.shape == (num, 2)
    if num == 50:
        assert torch.equal(chosen.sort(0).values, torch.arange(50)[:, None].expand(-1, 2))


@pytest.mark.parametrize("replacement", [True, False])
def test_chosen_draws_have_the_energys_moments(replacement):
    """From N(0, 1.5²) to N(0, 1): the variance of 200,000 draws has a standard error of
    0.003, and resampling adds less than as much; the mean's is 0.002."""
    torch.manual_seed(0)
    theta, log_w = gaussian_weights(800_000, 1, 2.25)
    log_weights = smoothed_weights(theta, log_w).log_weights
    index = resample(log_weights, 200_000, replacement)
    samples = theta[:, 0, 0][index[:, 0]]
    assert float(samples.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(samples.var()) == pytest.approx(1.0, abs=0.02)


def test_the_same_draw_is_chosen_twice_only_with_replacement():
    torch.manual_seed(0)
    _, log_w = gaussian_weights(2000, 1, 0.36, dim=2)
    assert len(resample(log_w, 500).unique()) == 500
    assert len(resample(log_w, 500, replacement=True).unique()) < 500


def test_the_displaced_share_is_the_excess_over_equal_shares():
    logs = torch.tensor([0.0, 0.0, 1.0]).unsqueeze(1)
    largest = float(logs[:, 0].softmax(0)[2])
    assert float(displaced_share(logs, 2)) == pytest.approx(largest - 0.5)
    assert float(displaced_share(logs, 1)) == 0.0
