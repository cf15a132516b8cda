"""One thread a test process: networks this small gain nothing from more, and test
processes that run side by side lose a lot."""

import pytest
import torch

from sbi_jeffreys.pool import exponential_family, synthetic_likelihood

torch.set_num_threads(1)


def fit_in_few_steps(monkeypatch):
    """After trainings of a second, fit the models of the pool in less than that."""
    monkeypatch.setattr(exponential_family, "MAX_ITERATIONS", 20)
    monkeypatch.setattr(synthetic_likelihood, "MAX_STEPS", 20)


@pytest.fixture(autouse=True)
def short_fits(request, monkeypatch):
    """Fit the pool in a few steps, unless the test is marked `full_fits`."""
    if request.node.get_closest_marker("full_fits") is None:
        fit_in_few_steps(monkeypatch)
