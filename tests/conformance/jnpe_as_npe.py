"""A pytest plugin that puts JNPE where sbi's tests look for NPE.

It replaces `NPE` and `NPE_C` before any test module is imported, and marks the
differences that are expected.

Its fast tests look at interfaces, so JNPE trains briefly in them: for FEW_EPOCHS where a
test does not say how long, and without pooling the energy with simpler models. The tests
of WITH_POOL have the pool. sbi's slow tests measure accuracy: JNPE has the pool in them
and trains for MANY_EPOCHS. The synthetic likelihood is fitted in MAX_STEPS.

sbi's conftest collects benchmark results by three functions and a fixture of
`pytest_harvest`. There is a stand-in for it.
"""

import sys
import types

import pytest
import sbi.inference
import sbi.inference.trainers.npe
import torch
from expected_differences import EXPECTED_DIFFERENCES

import sbi_jeffreys
from sbi_jeffreys.pool.registry import pool_models
from sbi_jeffreys.pool.synthetic_likelihood import folds

torch.set_num_threads(1)  # for test processes that run side by side

FEW_EPOCHS, MANY_EPOCHS = 2, 40
folds.MAX_STEPS = MAX_STEPS = 100

WITH_POOL = (
    "linearGaussian_snpe_test.py::test_example_posterior[",
    "posterior_nn_test.py::test_batched_sample_log_prob_with_different_x[mvn-1-",
    "save_and_load_test.py::test_picklability[JNPE-",
)
"""Fast tests that have the pool, by the start of their names."""


class JNPE(sbi_jeffreys.JNPE):
    """The trainer under test."""

    epochs = FEW_EPOCHS
    has_pool = False

    def train(self, *args, max_num_epochs=None, **kwargs):
        """Train for few epochs by default, with the pool or without."""
        self._fit.pool = pool_models(self.has_pool)
        if max_num_epochs is None:
            max_num_epochs = self.epochs
        return super().train(*args, max_num_epochs=max_num_epochs, **kwargs)


for module in (sbi.inference, sbi.inference.trainers.npe):
    module.NPE = module.NPE_C = JNPE

_harvest = types.ModuleType("pytest_harvest")
_harvest.get_session_results_df = lambda *_: None
_harvest.get_xdist_worker_id = lambda *_: None
_harvest.is_main_process = lambda *_: True
sys.modules["pytest_harvest"] = _harvest


@pytest.fixture(scope="session")
def fixture_store():
    """Stand in for the store of pytest_harvest."""
    return {}


def name_of(item):
    """Return the name of a test as it stands in `expected_differences`."""
    return item.nodeid.split("tests/", 1)[-1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Train as long as the test needs, with the pool or without."""
    is_slow = item.get_closest_marker("slow") is not None
    JNPE.epochs = MANY_EPOCHS if is_slow else FEW_EPOCHS
    JNPE.has_pool = is_slow or name_of(item).startswith(WITH_POOL)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Mark what is expected to differ; it must differ, or the run fails."""
    for item in items:
        for prefix, reason in EXPECTED_DIFFERENCES.items():
            if name_of(item).startswith(prefix):
                item.own_markers = [m for m in item.own_markers if m.name != "xfail"]
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_configure(config):
    """Declare sbi's markers, because its own configuration is not read."""
    for marker in ("slow", "gpu", "mcmc", "benchmark"):
        config.addinivalue_line("markers", marker)
