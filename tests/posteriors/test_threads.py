"""Threads that use one posterior at different x."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
)

from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from sbi_jeffreys.posteriors.sbi_samplers import sampled_by_sbi
from tests.closed_forms import ConjugateGaussian

TASK = ConjugateGaussian(dim=2)
OBSERVED = [torch.full((num, 2), value) for num, value in ((1, -2.0), (1, 2.0))]
JOINT = [torch.full((num, 2), value) for num, value in ((3, -2.0), (5, 2.0))]
POINTS = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
TRIES = 4


def exact_flow():
    pair = TASK.pair(1.0, 0.0)
    pair.flow.support = pair.energy.support
    return FlowPosterior(pair.flow, TASK.prior)


def by_sbi(parameters):
    pair = TASK.pair(1.0, 0.0)
    return sampled_by_sbi(pair, TASK.prior, parameters, "cpu")


@pytest.fixture(autouse=True)
def threads_that_switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_two_threads(function, observations):
    """Return what a function gives at each x, in several tries of two threads."""
    with ThreadPoolExecutor(2) as threads:
        for _ in range(TRIES):
            yield from zip(observations, threads.map(function, observations), strict=True)


POSTERIORS = {
    "flow": exact_flow,
    "corrected": lambda: EnergyPosterior(TASK.pair(1.0, 0.0), TASK.prior),
    "mcmc": lambda: by_sbi(
        MCMCPosteriorParameters(
            num_chains=50, warmup_steps=2, thin=1, init_strategy="proposal"
        )
    ),
    "rejection": lambda: by_sbi(RejectionPosteriorParameters()),
    "importance": lambda: by_sbi(ImportanceSamplingPosteriorParameters()),
}


@pytest.mark.parametrize("name", [*POSTERIORS, "several observations"])
def test_each_thread_gets_samples_of_its_own_x(name):
    """Means of 200 samples have a standard error of at most 0.04; those of the two x are
    at least 2.6 apart."""
    observations = JOINT if name == "several observations" else OBSERVED
    posterior = POSTERIORS.get(name, POSTERIORS["corrected"])()
    sample = partial(posterior.sample, (200,), show_progress_bars=False)
    for x, samples in in_two_threads(lambda x: sample(x=x), observations):
        mean, _ = TASK.posterior(x)
        assert (samples.mean(0) - mean).abs().max() < 0.3


@pytest.mark.parametrize("method", ["potential", "log_prob"])
@pytest.mark.parametrize("name", ["flow", "corrected"])
def test_each_thread_gets_densities_of_its_own_x(name, method, trained):
    posterior = trained.build_posterior() if name == "flow" else POSTERIORS[name]()
    call = getattr(posterior, method)
    want = [call(POINTS, x=x) for x in OBSERVED]
    assert not torch.allclose(*want)
    found = in_two_threads(lambda x: call(POINTS, x=x), OBSERVED)
    for number, (_, values) in enumerate(found):
        assert torch.equal(values, want[number % 2])


def test_calls_leave_the_posterior_without_an_observation():
    posterior = POSTERIORS["mcmc"]()
    posterior.sample((200,), x=OBSERVED[0], show_progress_bars=False)
    assert posterior.potential_fn.return_x_o() is None
    assert posterior.posterior_sampler is not None
    posterior.set_default_x(OBSERVED[1])
    assert posterior.sample((200,), show_progress_bars=False).mean() > 0
