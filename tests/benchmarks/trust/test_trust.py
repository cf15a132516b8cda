"""The command `trust`: the exact posteriors are exact, and the page shows the rows."""

import math

import pandas as pd
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from benchmarks import commands
from benchmarks.tasks.sbibm import FOLDED_SCALE, TASKS
from benchmarks.trust import page, trainings
from benchmarks.trust.exact import EXACT


def log_likelihood(task, theta, x):
    """Log density of x up to a constant, written from the simulators' definitions."""
    if task == "gaussian_mixture":
        parts = [Normal(theta, s).log_prob(x).sum(-1) for s in (1.0, 0.1)]
        return torch.stack(parts).logsumexp(0)
    if task == "folded_gaussian":
        return Normal(theta.abs(), FOLDED_SCALE).log_prob(x).sum(-1)
    if task == "two_moons":
        rotated = torch.stack([-theta.sum(-1).abs(), theta[..., 1] - theta[..., 0]], -1)
        point = x - rotated / math.sqrt(2) - torch.tensor([0.25, 0.0])
        radius = point.norm(dim=-1)
        log_prob = Normal(0.1, 0.01).log_prob(radius) - radius.log()
        return torch.where(point[..., 0] > 0, log_prob, -torch.inf)
    return Normal(theta, math.sqrt(0.1)).log_prob(x).sum(-1)


@pytest.mark.parametrize("task", EXACT)
def test_the_density_is_proportional_to_prior_times_likelihood(task):
    """At draws of the prior and of the posterior itself, for each of four x."""
    torch.manual_seed(0)
    _, x = TASKS[task].simulate(4, 1)
    theta = EXACT[task].sample(50, x)
    joint = log_likelihood(task, theta, x) + TASKS[task].prior.log_prob(theta)
    constant = EXACT[task].log_prob(theta, x) - joint
    assert constant.isfinite().all()
    # The normaliser of two_moons is estimated, the same for all parameters.
    assert (constant - constant.mean(0)).abs().max() < 2e-3


@pytest.mark.parametrize("task", ["gaussian_mixture", "two_moons"])
def test_the_density_integrates_to_one(task):
    torch.manual_seed(0)
    _, x = TASKS[task].simulate(1, 3)
    centre, half = (x[0], 5.0) if task == "gaussian_mixture" else (torch.zeros(2), 1.0)
    line = (torch.arange(1500) + 0.5) / 1500 * 2 * half - half
    theta = torch.cartesian_prod(line, line) + centre
    inside = TASKS[task].prior.support.check(theta)
    density = EXACT[task].log_prob(theta.unsqueeze(1), x).exp().squeeze(1)
    mass = (density * inside).sum() * (2 * half / 1500) ** 2
    assert float(mass) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("task", ["gaussian_linear", "gaussian_linear_uniform"])
def test_the_density_of_ten_parameters_integrates_to_one(task):
    """By importance sampling: the standard error is below 0.005."""
    torch.manual_seed(0)
    x = torch.linspace(-0.9, 0.9, 10).unsqueeze(0)
    mean, sd = (x / 2, 0.26) if task == "gaussian_linear" else (x, 0.35)
    proposal = MultivariateNormal(mean[0], sd**2 * torch.eye(10))
    theta = proposal.sample((200_000,))
    inside = TASKS[task].prior.support.check(theta)
    log_weights = EXACT[task].log_prob(theta.unsqueeze(1), x)[:, 0]
    weights = (log_weights - proposal.log_prob(theta)).exp() * inside
    assert float(weights.mean()) == pytest.approx(1, abs=0.02)


def test_samples_of_a_mixture_are_those_of_its_density():
    """Two posterior means by samples and by a grid; five standard errors."""
    torch.manual_seed(0)
    x = torch.tensor([[9.5, 0.0]])  # the box cuts it
    samples = EXACT["gaussian_mixture"].sample(20_000, x)[:, 0]
    line = torch.linspace(5, 10, 1001)
    theta = torch.cartesian_prod(line, torch.linspace(-5, 5, 1001))
    density = EXACT["gaussian_mixture"].log_prob(theta.unsqueeze(1), x).exp()
    mean = (density * theta[:, :1]).sum() / density.sum()
    error = samples[:, 0].std() / math.sqrt(20_000)
    assert abs(samples[:, 0].mean() - mean) < 5 * error
    assert samples.max() <= 10


def test_a_number_that_orders_errors_has_area_and_correlation_of_one():
    errors = torch.arange(50.0)
    assert trainings.how_well(errors.exp(), errors) == pytest.approx((1.0, 1.0))
    area, rank = trainings.how_well(-errors, errors)
    assert (area, rank) == pytest.approx((0.0, -1.0))


def test_a_run_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "NUM_X", 10)
    monkeypatch.setattr(trainings, "NUM_DRAWS", 20)
    monkeypatch.setattr(trainings, "NUM_NORMALIZER_DRAWS", 50)
    original = trainings.JNPE.train
    short = {"max_num_epochs": 2}
    monkeypatch.setattr(trainings.JNPE, "train", lambda self: original(self, **short))
    words = ["trust", "--tasks", "gaussian_mixture", "--budgets", "240", "--seeds", "0"]
    commands.main([*words, "--output", str(tmp_path)])
    finished = pd.read_csv(tmp_path / "trust.csv")
    assert finished.drop(columns=["large_flow", "large_corrected"]).notna().all(axis=None)
    text = (tmp_path / "trust.md").read_text()
    assert "| gaussian_mixture | 240 |" in text
    assert page.report(finished) + "\n" == text
