"""Progress bars of a training, and when all of it will be done.

Work is counted in steps of the networks. With 1,000 simulations of fifteen tasks, fitting
the pool took as long as 180 to 810 of them, and a step of the following as long as 0.47
to 0.88 of one (benchmarks/results/ablations.md). Where the networks go on beside the
pool, the training takes longer than was said.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm.auto import tqdm

from sbi_jeffreys.data.processes import process_rank

POOL_WORK = 470.0
"""Steps of the networks that take as long as fitting the pool to 1,000 simulations."""

FOLLOWING_WORK = 11.0
"""Steps of the networks that take as long as an epoch of the following, of 20 steps."""


@dataclass(frozen=True)
class WorkAfterNetworks:
    """The work of the pool, and of the flow that learns from it and follows it.

    Attributes:
        growth: Factor of all of it. It is one with 1,000 simulations.
    """

    growth: float

    def num_epochs(self, num: int) -> int:
        """Return the epochs in place of this number with 1,000 simulations."""
        return max(1, round(self.growth * num))

    def steps(self, num_epochs: int) -> float:
        """Return the work of epochs of the following, in steps of the networks."""
        return self.growth * FOLLOWING_WORK * num_epochs

    def steps_with_pool(self, num_epochs: int) -> float:
        """Return the work of fitting the pool and of epochs of the following."""
        return self.growth * POOL_WORK + self.steps(num_epochs)


@contextmanager
def shown(description: str, show_progress: bool) -> Iterator[None]:
    """Show a part of the work that has no steps to count.

    Args:
        description: Label of the progress bar.
        show_progress: Whether to show it. Of several processes, the first one does.
    """
    hidden = not show_progress or process_rank() > 0
    with tqdm(desc=description, total=1, unit=" parts", disable=hidden) as bar:
        yield
        bar.update()


def time_left(bar: tqdm, later: float) -> dict[str, str]:
    """Return the time until all of a training is done, for the postfix of its bar.

    Args:
        bar: The bar of a part of the training. The pace is its own.
        later: What comes after this part, in units of the bar. If nothing does, the bar's
            own estimate serves, and the result is empty.
    """
    done = 0 if bar.disable else bar.n - bar.initial
    if not (later and done):
        return {}
    pace = bar.format_dict["elapsed"] / done
    return {"all done in": tqdm.format_interval(pace * (bar.total - bar.n + later))}
