"""How much is measured."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: Rounds, in which NPE and JNPE take turns.
        num_steps: Steps of each in a round.
        num_epochs: Epochs of each in a round, after those of warm-up.
        num_training_epochs: Epochs of training before posteriors are sampled.
        num_samples: Samples drawn for one observation.
        num_observations: Observations for each of which `num_samples / 100` are drawn.
        num_corrected_samples: Samples of NPE, flow and corrected posterior for each
            observation.
        num_corrected_observations: Observations for `num_corrected_samples`.
    """

    rounds: int = 3
    num_steps: int = 10
    num_epochs: int = 5
    num_training_epochs: int = 100
    num_samples: int = 10_000
    num_observations: int = 2_000
    num_corrected_samples: int = 1_000
    num_corrected_observations: int = 500


@contextmanager
def max_num_epochs_expected() -> Iterator[None]:
    """Silence the warning of trainings that reach `max_num_epochs`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max_num_epochs")
        yield
