"""What all tests share.

One thread a test process: networks this small gain nothing from more, and test processes
that run side by side lose a lot.
"""

import pytest
import torch
from torch.distributions import Distribution

from sbi_jeffreys import _arviz
from sbi_jeffreys.pool import exponential_family
from sbi_jeffreys.pool.synthetic_likelihood import folds
from tests.small_trainings import make_trainer, quick

torch.set_num_threads(1)


def fit_in_few_steps(monkeypatch):
    """After trainings of a second, fit the models of the pool in less than that."""
    monkeypatch.setattr(exponential_family, "MAX_ITERATIONS", 3)
    monkeypatch.setattr(folds, "MAX_STEPS", 3)


@pytest.fixture(autouse=True)
def short_fits(request, monkeypatch):
    """Fit the pool in a few steps, unless the test is marked `full_fits`."""
    if request.node.get_closest_marker("full_fits") is None:
        fit_in_few_steps(monkeypatch)


@pytest.fixture(params=["InferenceData", "DataTree"])
def container(request, monkeypatch):
    """Export to each kind; to that of arviz 0.x only where it is installed."""
    real = _arviz.release
    if request.param == "DataTree":
        monkeypatch.setattr(
            _arviz, "release", lambda name: (1, 0) if name == "arviz" else real(name)
        )
    elif real("arviz") >= (1, 0):
        pytest.skip("arviz 1.x is installed")
    return request.param


@pytest.fixture(scope="session")
def trained():
    """A trainer after three epochs, for tests that only read from it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fit_in_few_steps(monkeypatch)
        trainer = make_trainer()
        quick(trainer, max_num_epochs=3)
    return trainer


@pytest.fixture(scope="module")
def validation():
    """Distributions check their arguments, as where sbi was imported without pyro."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)
