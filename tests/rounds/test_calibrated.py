"""Simulation-based calibration of whole runs: each dataset has rounds of its own."""

import warnings

import pytest
import torch
from scipy.stats import kstest
from torch.distributions import MultivariateNormal

from sbi_jeffreys import JNPE, run_rounds

NUM_RUNS, NUM_SAMPLES = 100, 999


def simulate(theta):
    """Two parameters, a curved mean, and errors of different sizes."""
    scale = torch.tensor([0.3, 0.5])
    return theta + 0.2 * theta.square() + scale * torch.randn_like(theta)


@pytest.mark.very_slow
@pytest.mark.full_fits
def test_ranks_of_the_truth_are_uniform():
    """Of 100 runs of three rounds with 100 simulations each. P-values of both parameters
    below 0.005 would be a false alarm of one in 100 at most (Bonferroni)."""
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    torch.manual_seed(12345)
    truths = prior.sample((NUM_RUNS,))
    observed = simulate(truths)
    ranks = []
    for seed, (theta, x_o) in enumerate(zip(truths, observed, strict=True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = run_rounds(
                JNPE(prior, show_progress_bars=False),
                simulate,
                x_o,
                300,
                num_rounds=3,
                seed=seed,
                training={"max_num_epochs": 20},
                show_progress_bars=False,
            )
            samples = result.posterior.sample((NUM_SAMPLES,), show_progress_bars=False)
        ranks.append((samples < theta).float().mean(0))
        print(seed, ranks[-1].tolist(), flush=True)
    p_values = [
        float(kstest(column, "uniform").pvalue) for column in torch.stack(ranks).T
    ]
    print(p_values)
    assert min(p_values) > 0.005
