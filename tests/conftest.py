"""One thread a test process: networks this small gain nothing from more, and test
processes that run side by side lose a lot."""

import pytest
import torch

from sbi_jeffreys.pool import exponential_family
from sbi_jeffreys.pool.synthetic_likelihood import ensemble

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def short_fits(request, monkeypatch):
    """After trainings of a second, fit the models of the pool in less than that."""
    if request.node.get_closest_marker("full_fits") is None:
        monkeypatch.setattr(exponential_family, "MAX_ITERATIONS", 20)
        monkeypatch.setattr(ensemble, "MAX_STEPS", 20)
