"""One thread a test process: networks this small gain nothing from more, and test
processes that run side by side lose a lot."""

import pytest
import torch

from sbi_jeffreys import exponential_family

torch.set_num_threads(1)

FITTED_IN_FULL = "test_exponential_family", "test_pool", "test_distributed"


@pytest.fixture(autouse=True)
def short_fits(request, monkeypatch):
    """After trainings of a second, fit the exponential family in less than that."""
    if request.module.__name__.split(".")[-1] not in FITTED_IN_FULL:
        monkeypatch.setattr(exponential_family, "MAX_ITERATIONS", 20)
