"""The two fits that the experiments compare, trained for a given number of epochs."""

import warnings
from typing import Any

from torch import Tensor

from sbi_jeffreys.density import JeffreysDensityEstimator

METHODS: dict[str, dict[str, Any]] = {
    "ours": {},
    "flow": {
        "weighting": "fixed",
        "weights": (1.0, 0.0, 0.0),
        "num_energies": 1,
        "num_particles": 1,
    },
}
"""Options of the estimator, by the name of the method. "ours" has the defaults. With
those of "flow", the flow is fitted by maximum likelihood and nothing else affects it."""


def fit_for(
    epochs: int, samples: Tensor, estimator: JeffreysDensityEstimator, **training: Any
) -> JeffreysDensityEstimator:
    """Train without stopping early, and return the estimator.

    Args:
        epochs: Epochs over all calls that resume. Learning rates go through their cycles.
        samples: Points to fit, shape `(N, D)`.
        estimator: Estimator that is fitted in place.
        training: Options of `JNPE.train`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Training stopped at `max_num_epochs")
        return estimator.fit(
            samples, max_num_epochs=epochs, **{"stop_after_epochs": 2 * epochs} | training
        )


def estimator_of(options: dict[str, Any]) -> JeffreysDensityEstimator:
    """Return an estimator with these options, without a progress bar."""
    return JeffreysDensityEstimator(show_progress_bars=False, **options)
