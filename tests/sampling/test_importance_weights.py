"""Importance weights of a Gaussian flow against a Gaussian energy."""

import math

import pytest
import torch

from sbi_jeffreys.sampling.importance_weights import (
    effective_sample_size,
    kl_flow_energy,
    kl_flow_energy_se,
    log_mean_exp,
    relative_ess,
    smoothed_weights,
)
from sbi_jeffreys.sampling.psis import MAX_PARETO_K
from tests.closed_forms import gaussian_weights


def test_equal_weights_are_perfect():
    weights = smoothed_weights(torch.randn(500, 3, 2), torch.full((500, 3), 2.5))
    torch.testing.assert_close(weights.ess, torch.full((3,), 500.0))
    torch.testing.assert_close(weights.log_z, torch.full((3,), 2.5))
    torch.testing.assert_close(weights.log_z_se, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.log_weights.exp(), torch.full((500, 3), 1 / 500))
    assert weights.pareto_k.isneginf().all()


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("variance", [0.8, 1.0, 1.5])
def test_log_z_and_ess_are_those_of_gaussians(variance, dim):
    """The mean of 200 estimates of log Z is within 4 standard errors: a false failure in
    16,000. ESS / N tends to (E w)² / E w² = (√(2 v − 1) / v)^D."""
    num = 4000
    theta, log_w = gaussian_weights(num, 200, variance, dim, log_z=-1.3)
    weights = smoothed_weights(theta, log_w)
    error = weights.log_z - -1.3
    assert abs(error.mean()) <= 4 * error.std() / math.sqrt(200) + 1e-9
    expected = (math.sqrt(2 * variance - 1) / variance) ** dim
    assert float(weights.ess.mean()) / num == pytest.approx(expected, abs=0.02)
    if variance != 1:  # the standard error is right
        ratio = float(error.std() / weights.log_z_se.mean())
        assert 0.8 < ratio < 1.25  # five standard errors of a standard deviation of 200


def test_log_z_converges_at_the_rate_of_monte_carlo():
    """The root mean square error of 300 estimates falls as N^-1/2; the fitted slope has
    a standard error of about 0.02, so that 0.08 is four."""
    sizes = torch.tensor([250, 1000, 4000, 16000])
    estimates = [
        smoothed_weights(*gaussian_weights(n, 300, 1.5, seed=i)).log_z
        for i, n in enumerate(sizes.tolist())
    ]
    errors = [log_z.square().mean().sqrt() for log_z in estimates]
    x, y = sizes.double().log(), torch.stack(errors).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope == pytest.approx(-0.5, abs=0.08)


@pytest.mark.parametrize("variance", [0.2, 0.5, 0.8])
def test_the_tail_of_a_flow_too_narrow_has_the_shape_of_theory(variance):
    """Weights of N(0, v) for N(0, 1) have a Pareto tail of shape 1 − v, up to logarithms,
    which cost 0.08 at v = 0.2; the mean of 300 has a standard error below 0.01."""
    weights = smoothed_weights(*gaussian_weights(2000, 300, variance))
    assert float(weights.pareto_k.mean()) == pytest.approx(1 - variance, abs=0.1)


def test_a_flow_too_narrow_raises_the_alarm_and_no_other_does():
    """In 4-D, 95.2 % of the flows with a tenth of the variance and 1.3 % of those with
    0.6 are expected to, measured on 3,000 of each with arviz 0.23, arviz-stats 0.8 and
    1.3. Of 300, fewer than 273 or more than 12 in one run of 1,000."""

    def alarms(variance):
        weights = smoothed_weights(*gaussian_weights(2000, 300, variance, dim=4))
        return int((weights.pareto_k > MAX_PARETO_K).sum())

    assert alarms(0.1) >= 273
    assert alarms(0.6) <= 12
    assert alarms(1.0) == alarms(2.0) == 0


def test_draws_outside_have_no_weight():
    theta, log_w = gaussian_weights(1000, 2, 1.5)
    log_w[500:] = -torch.inf
    weights = smoothed_weights(theta, log_w)
    inside = smoothed_weights(theta[:500], log_w[:500])
    assert weights.log_weights[500:].isneginf().all()
    torch.testing.assert_close(
        weights.log_z, inside.log_z - math.log(2), atol=0.02, rtol=0
    )
    with pytest.raises(RuntimeError, match="None of 4 draws"):
        smoothed_weights(torch.zeros(4, 1, 1), torch.full((4, 1), -torch.inf))


def test_effective_sample_size():
    logs = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    assert effective_sample_size(logs).tolist() == [2.0, 1.0, 0.0]
    some = logs[:, :2]
    expected = effective_sample_size(some).float() / 2
    torch.testing.assert_close(relative_ess(some), expected)


def test_the_log_of_the_mean_weight():
    weights = torch.tensor([[1.0, 0.0], [2.0, 4.0], [6.0, 0.0]])
    expected = torch.tensor([3.0, 4.0 / 3.0]).log()
    torch.testing.assert_close(log_mean_exp(weights.log()), expected)


def test_the_divergence_of_discrete_distributions():
    """p has equal shares of three points and q shares 1/6, 2/6 and 3/6."""
    log_weights = torch.tensor([1.0, 2.0, 3.0]).log().unsqueeze(1)
    exact = sum(math.log((1 / 3) / (k / 6)) / 3 for k in (1, 2, 3))
    log_z = log_mean_exp(log_weights)
    assert float(kl_flow_energy(log_weights, log_z)) == pytest.approx(exact, abs=1e-6)
    outside = torch.cat([log_weights, torch.full((3, 1), -torch.inf)])
    got = kl_flow_energy(outside, log_mean_exp(outside))
    assert float(got) == pytest.approx(exact, abs=1e-6)
    shares = outside.softmax(0)
    expected = kl_flow_energy_se(log_weights, log_weights.softmax(0))
    torch.testing.assert_close(kl_flow_energy_se(outside, shares), expected)


def test_no_nan_among_weights_is_hidden():
    log_weights = torch.tensor([[0.0], [torch.nan]])
    assert kl_flow_energy(log_weights, torch.zeros(1)).isnan()
