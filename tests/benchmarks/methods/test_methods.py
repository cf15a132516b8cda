"""Each training gives posteriors for its methods."""

import math

import pytest

from benchmarks.methods.registry import METHODS, TRAININGS
from benchmarks.tasks.sbibm import TASKS


def test_each_method_comes_from_one_training():
    names = [name for training in TRAININGS.values() for name in training.methods]
    assert len(names) == len(set(names)) == len(METHODS)


CHEAP = ["npe_maf", "npe_nsf_regularized", "npe_nsf_prepared", "jnpe"]


@pytest.mark.parametrize(
    "name",
    [
        *CHEAP,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in TRAININGS
            if name not in CHEAP
        ),
    ],
)
def test_trainings_give_posteriors(name):
    task, training = TASKS["gaussian_mixture"], TRAININGS[name]
    test = task.simulate(50, seed=1)
    fits = training.fit(task.prior, *task.simulate(60, seed=0), test, seed=0)
    assert len(fits) == len(training.methods)
    for fit in fits:
        samples = fit.posterior.sample((20,), x=test[1][:1], show_progress_bars=False)
        assert samples.shape == (20, 2)
        assert samples.isfinite().all()
        assert fit.epochs > 0
        assert fit.training_seconds > 0
        if training.batched_options is None:
            assert math.isnan(fit.nll)
        else:
            assert math.isfinite(fit.nll)
            drawn = fit.posterior.sample_batched(
                (3,), test[1][:2], show_progress_bars=False, **training.batched_options
            )
            assert drawn.shape == (3, 2, 2)


def test_last_epoch_of_npe_differs_from_the_best():
    task = TASKS["gaussian_mixture"]
    test = task.simulate(50, seed=1)
    (fit,) = TRAININGS["npe_maf"].fit(task.prior, *task.simulate(60, 0), test, seed=0)
    assert fit.nll != fit.nll_last
