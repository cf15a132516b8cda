"""The simulators of `nll`, against closed forms. Statistical tests fail by chance in less
than 1e-4 of all seeds each; they are seeded."""

import math

import pytest
import torch
from scipy.stats import kstest, norm

from benchmarks.accuracy.held_out import log_mass_inside
from benchmarks.tasks.fields import FIELDS
from benchmarks.tasks.sbibm import TASKS
from benchmarks.tasks.unseen import (
    CUSTOMERS,
    G_AND_K_DRAWS,
    OU_INTERVAL,
    OU_STEPS,
    RICKER_STEPS,
    SENSOR_NOISE,
    SENSORS,
    UNSEEN,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", UNSEEN | FIELDS)
def test_simulations_are_finite_reproducible_and_inside_of_the_prior(name):
    task = (UNSEEN | FIELDS)[name]
    theta, x = task.simulate(200, seed=3)
    assert torch.equal(x, task.simulate(200, seed=3)[1])
    assert not torch.equal(x, task.simulate(200, seed=4)[1])
    assert x.isfinite().all()
    assert theta.dtype == x.dtype == torch.float32
    assert task.prior.log_prob(theta).isfinite().all()


def test_no_simulator_has_the_name_of_another():
    assert len(UNSEEN | FIELDS | TASKS) == len(UNSEEN) + len(FIELDS) + len(TASKS)


def test_g_and_k_is_gaussian_without_g_and_k():
    """Means over 1,000 of octiles, within 4.5 standard errors and their bias, < 1 / n."""
    x = UNSEEN["g_and_k"].simulator(torch.tensor([[3.0, 2.0, 0.0, 0.0]]).expand(1000, -1))
    exact = torch.tensor(3 + 2 * norm.ppf([i / 8 for i in range(1, 8)])).float()
    bound = 4.5 * x.std(0) / 1000**0.5 + 2 / G_AND_K_DRAWS
    assert ((x.mean(0) - exact).abs() < bound).all()


def test_g_and_k_has_its_quantiles():
    """The median is A; and 7/8 is B (1 + 0.8 tanh(g z / 2)) (1 + z²)^k z above it."""
    location, scale, skewness, kurtosis = 3.0, 2.0, 1.5, 0.5
    theta = torch.tensor([[location, scale, skewness, kurtosis]]).expand(1000, -1)
    x = UNSEEN["g_and_k"].simulator(theta)
    z = norm.ppf(7 / 8)
    skewed = 1 + 0.8 * math.tanh(skewness * z / 2)
    exact = torch.tensor(
        [location, location + scale * skewed * (1 + z**2) ** kurtosis * z]
    )
    got = x[:, [3, 6]]
    bound = 4.5 * got.std(0) / 1000**0.5 + 30 / G_AND_K_DRAWS
    assert ((got.mean(0) - exact).abs() < bound).all()


def test_a_busy_counter_serves_without_a_break():
    theta = torch.tensor([[2.0, 3.0, 1e6]]).expand(1000, -1)
    x = UNSEEN["queue"].simulator(theta)
    assert (x[:, 0] >= 2 - 1e-4).all()  # differences of sums in single precision
    assert (x[:, 4] <= 5 + 1e-3).all()
    place = (CUSTOMERS - 1) * torch.tensor([0.25, 0.5, 0.75]) + 1
    exact = 2 + 3 * place / (CUSTOMERS + 1)  # mean of ordered uniform numbers
    bound = 4.5 * x[:, 1:4].std(0) / 1000**0.5
    assert ((x.mean(0)[1:4] - exact).abs() < bound).all()


def test_an_idle_counter_sends_customers_off_as_they_come():
    """Least of 50 exponential times is exponential with 50 times the rate, by KS."""
    theta = torch.tensor([[0.0, 1e-3, 1e-3]]).expand(1000, -1)
    least = UNSEEN["queue"].simulator(theta)[:, 0]
    exact = kstest(least.numpy(), "expon", args=(0, 1e3 / CUSTOMERS))
    assert exact.pvalue > 1e-4


def test_a_quiet_population_settles_where_its_growth_ends():
    """N = log r is stable below 2; counts are Poisson of that, so that mean and variance
    are the same and autocovariances are those of a centered sample of white noise."""
    log_growth, yield_ = 1.5, 10.0
    theta = torch.tensor([[log_growth, 0.0, yield_]]).expand(2000, -1)
    x = UNSEEN["ricker"].simulator(theta)
    rate, n = log_growth * yield_, RICKER_STEPS
    expected = [rate, n * math.exp(-rate), rate * (1 - 1 / n), -rate / n]
    for column, value in enumerate(expected):
        error = float(x[:, column].std()) / 2000**0.5
        assert abs(float(x[:, column].mean()) - value) < 4.5 * error + 0.01


def test_a_population_that_all_but_vanishes_comes_back():
    """In 0.3 % of simulations it does not, for 100 years (20,000 in double precision):
    13.6 % where it may be rounded to zero. A standard error of 0.1 %."""
    theta = torch.stack(
        [
            4 + torch.rand(4000),
            0.5 + 0.3 * torch.rand(4000),
            4 + 16 * torch.rand(4000),
        ],
        -1,
    )
    zeros = UNSEEN["ricker"].simulator(theta)[:, 1]
    assert float((zeros == RICKER_STEPS).double().mean()) < 0.01


def test_a_chaotic_population_falls_to_zero():
    theta = torch.tensor([[4.5, 0.3, 10.0]]).expand(100, -1)
    assert (UNSEEN["ricker"].simulator(theta)[:, 1] > RICKER_STEPS / 5).all()


def test_paths_have_the_mean_and_covariance_of_the_process():
    rate, level, noise, num = 0.8, 1.2, 0.7, 20_000
    theta = torch.tensor([[rate, level, noise]]).expand(num, -1)
    x = UNSEEN["ornstein_uhlenbeck"].simulator(theta).double()
    t = OU_INTERVAL * torch.arange(1, OU_STEPS + 1, dtype=torch.float64)
    mean = level * (1 - (-rate * t).exp())
    apart, together = (t[:, None] - t).abs(), t[:, None] + t
    covariance = (
        noise**2 / (2 * rate) * ((-rate * apart).exp() - (-rate * together).exp())
    )
    variance = covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < 5 * (variance / num).sqrt()).all()
    error = ((variance[:, None] * variance + covariance.square()) / num).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5.5 * error).all()


def test_sensors_add_up_what_two_sources_send():
    theta = torch.tensor([[3.0, 4.0, 0.0, -1.0]]).expand(4000, -1)
    x = UNSEEN["two_sources"].simulator(theta)
    at_origin = math.log(0.1 + 1 / (25 + 1e-4) + 1 / (1 + 1e-4))
    assert torch.equal(SENSORS[0], torch.zeros(2))
    assert abs(float(x[:, 0].mean()) - at_origin) < 4.5 * SENSOR_NOISE / 4000**0.5
    assert float(x[:, 0].std()) == pytest.approx(SENSOR_NOISE, rel=0.06)


def test_two_sources_can_be_exchanged():
    theta = torch.tensor([[0.5, 2.0, -1.0, 0.3]])
    simulator = UNSEEN["two_sources"].simulator
    torch.manual_seed(1)
    x = simulator(theta)
    torch.manual_seed(1)
    assert torch.allclose(simulator(theta[:, [2, 3, 0, 1]]), x)


class _Half:
    """A "flow" of which half of the draws lie outside of [0, 1]."""

    def eval(self):
        return self

    def sample(self, shape, condition):
        return 2 * torch.rand(*shape, len(condition), 1)


def test_mass_inside_of_the_prior_is_that_of_its_draws():
    """200 draws for each of 400 x: within 4.5 standard errors, and the bias of a log."""
    prior = torch.distributions.Independent(
        torch.distributions.Uniform(torch.zeros(1), torch.ones(1)), 1
    )
    got = log_mass_inside(_Half(), prior, torch.zeros(400, 3))
    error = abs(float(got.mean()) - math.log(0.5))
    assert error < 4.5 / math.sqrt(400 * 200) + 1 / 200
