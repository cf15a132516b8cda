"""How much is measured."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        rounds: Of NPE and JNPE in turn.
        num_steps: Of each in a round.
        num_epochs: Of each in a round, after those of warm-up.
        num_training_epochs: Before posteriors are sampled.
        num_samples: Drawn for one observation.
        num_observations: For each of which a hundredth as many are drawn.
        num_corrected_samples: Drawn of NPE, flow and corrected posterior in turn, for
            each of `num_corrected_observations`.
        num_corrected_observations: See there.
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
    """Say nothing of trainings that reach it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max_num_epochs")
        yield
