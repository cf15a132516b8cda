"""Importance weights of a Gaussian flow against a Gaussian energy, and resampling."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sbi_jeffreys.sampling.importance import (
    MAX_PARETO_K,
    corrected_draws,
    displaced,
    effective_sample_size,
    resample,
    smooth,
)


def gaussian_weights(num, batch, variance, dim=1, log_z=0.0, seed=0):
    """Draws of N(0, variance) and their log weights for e^log_z N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(num, batch, dim, generator=generator, dtype=torch.float64)
    theta *= math.sqrt(variance)
    squares = theta.square().sum(-1)
    log_w = log_z + 0.5 * squares * (1 / variance - 1) + dim / 2 * math.log(variance)
    return theta, log_w


def test_equal_weights_are_perfect():
    weights = smooth(torch.randn(500, 3, 2), torch.full((500, 3), 2.5))
    torch.testing.assert_close(weights.ess, torch.full((3,), 500.0))
    torch.testing.assert_close(weights.log_z, torch.full((3,), 2.5))
    torch.testing.assert_close(weights.log_z_se, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.log_weights.exp(), torch.full((500, 3), 1 / 500))
    assert weights.pareto_k.isneginf().all()


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("variance", [0.8, 1.0, 1.5])
def test_log_z_and_ess_are_those_of_gaussians(variance, dim):
    """log Z of 200 estimates within 4 standard errors of their mean: a false failure in
    16,000. ESS / N tends to (E w)² / E w² = (√(2 v − 1) / v)^D."""
    num = 4000
    theta, log_w = gaussian_weights(num, 200, variance, dim, log_z=-1.3)
    weights = smooth(theta, log_w)
    error = weights.log_z - -1.3
    assert abs(error.mean()) <= 4 * error.std() / math.sqrt(200) + 1e-9
    expected = (math.sqrt(2 * variance - 1) / variance) ** dim
    assert float(weights.ess.mean()) / num == pytest.approx(expected, abs=0.02)
    if variance != 1:  # what it says of its own error is right
        ratio = float(error.std() / weights.log_z_se.mean())
        assert 0.8 < ratio < 1.25  # five standard errors of a standard deviation of 200


def test_log_z_converges_at_the_rate_of_monte_carlo():
    """The root mean square error of 300 estimates falls as N^-1/2; the fitted slope has
    a standard error of about 0.02, so that 0.08 is four."""
    sizes = torch.tensor([250, 1000, 4000, 16000])
    errors = [
        smooth(*gaussian_weights(n, 300, 1.5, seed=i)).log_z.square().mean().sqrt()
        for i, n in enumerate(sizes.tolist())
    ]
    x, y = sizes.double().log(), torch.stack(errors).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope == pytest.approx(-0.5, abs=0.08)


@pytest.mark.parametrize("variance", [0.2, 0.5, 0.8])
def test_the_tail_of_a_flow_too_narrow_has_the_shape_of_theory(variance):
    """Weights of N(0, v) for N(0, 1) have a Pareto tail of shape 1 − v, up to logarithms,
    which cost 0.08 at v = 0.2; the mean of 300 has a standard error below 0.01."""
    weights = smooth(*gaussian_weights(2000, 300, variance))
    assert float(weights.pareto_k.mean()) == pytest.approx(1 - variance, abs=0.1)


def test_a_flow_too_narrow_raises_the_alarm_and_no_other_does():
    """In 4-D, 98 % of the flows with a tenth of the variance, 1.5 % of those with 0.6,
    are expected to: of 300, fewer than 285 or more than 12 in one run of 1,000."""

    def alarms(variance):
        weights = smooth(*gaussian_weights(2000, 300, variance, dim=4))
        return int((weights.pareto_k > MAX_PARETO_K).sum())

    assert alarms(0.1) >= 285
    assert alarms(0.6) <= 12
    assert alarms(1.0) == alarms(2.0) == 0


def test_draws_outside_have_no_weight():
    theta, log_w = gaussian_weights(1000, 2, 1.5)
    log_w[500:] = -torch.inf
    weights = smooth(theta, log_w)
    inside = smooth(theta[:500], log_w[:500])
    assert weights.log_weights[500:].isneginf().all()
    torch.testing.assert_close(
        weights.log_z, inside.log_z - math.log(2), atol=0.02, rtol=0
    )
    with pytest.raises(RuntimeError, match="None of 4 draws"):
        smooth(torch.zeros(4, 1, 1), torch.full((4, 1), -torch.inf))


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


def test_chosen_draws_have_the_energys_moments():
    """From N(0, 1.5²) to N(0, 1): the variance of 200,000 draws has a standard error of
    0.003, and resampling adds less than as much; the mean's is 0.002."""
    theta, log_w = gaussian_weights(800_000, 1, 2.25)
    index = resample(smooth(theta, log_w).log_weights, 200_000)
    samples = theta[:, 0, 0][index[:, 0]]
    assert float(samples.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(samples.var()) == pytest.approx(1.0, abs=0.02)


def test_pools_grow_until_they_are_effective_or_as_large_as_allowed():
    calls = []

    def draw(columns, num):
        calls.append((columns.tolist(), num))
        log_w = torch.randn(num, 3) * torch.tensor([0.1, 0.9, 4.0])
        return torch.randn(num, len(columns), 2), log_w[:, columns]

    torch.manual_seed(0)
    samples, pareto_k = corrected_draws(
        draw, 3, 1000, 2200, 16_000, 2000.0, max_displaced=None
    )
    assert samples.shape == (1000, 3, 2)
    assert pareto_k[2] > MAX_PARETO_K > pareto_k[1]
    drawn = [sum(num for columns, num in calls if i in columns) for i in range(3)]
    assert drawn[0] == 2200  # ESS / N is 0.99
    assert 2000 / math.exp(-0.81) * 0.8 < drawn[1] < 2 * 2000 / math.exp(-0.81)
    assert drawn[2] == 16_000


def test_pools_grow_until_little_weight_is_displaced():
    """Of the tail that a flow too narrow misses, more is there in larger pools."""

    def draw(columns, num):
        theta, log_w = gaussian_weights(num, 1, 0.6, dim=2, seed=num)
        return theta, log_w

    samples, _ = corrected_draws(draw, 1, 1000, 2400, 16_000, 0.0, max_displaced=0.01)
    loose, _ = corrected_draws(draw, 1, 1000, 2400, 16_000, 0.0, max_displaced=1.0)
    assert len(samples.unique(dim=0)) == len(loose.unique(dim=0)) == 1000
    logs = torch.tensor([0.0, 0.0, 1.0]).exp().log().unsqueeze(1)
    shares = logs[:, 0].softmax(0)
    assert float(displaced(logs, 2)) == pytest.approx(float(shares[2]) - 0.5)
    assert float(displaced(logs, 1)) == 0.0
    assert samples.var() > loose.var()  # the tails come from the largest weights


def test_effective_sample_size():
    logs = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    assert effective_sample_size(logs).tolist() == [2.0, 1.0, 0.0]
