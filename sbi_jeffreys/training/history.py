"""The record of a training: one list per quantity, with one entry per epoch."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from sbi.sbi_types import Tracker

TERMS = ("KL(data|flow)", "KL(flow|energy)", "KL(data|energy)")
"""Names of the three divergences, in the order of `Divergences`."""

HELD_OUT = (
    "validation_loss",
    "validation_energy_loss",
    "validation_kl_flow_energy",
    "validation_log_z",
    "validation_ess",
)
"""Names of the held-out means, in the order in which `held_out_means` computes them."""

LOGGED_BY_SBI = ("training_loss", "validation_loss", "epoch_durations_sec")


class History(dict[str, list[Any]]):
    """Lists of the quantities of each epoch, by their names."""

    def record(self, **values: Any) -> None:
        """Append a value to each of several lists."""
        for name, value in values.items():
            self.setdefault(name, []).append(value)

    def truncate(self, epochs: int) -> None:
        """Forget all but the first `epochs` epochs."""
        for values in self.values():
            del values[epochs:]

    def progress(self, best_loss: float) -> dict[str, str]:
        """Return what a progress bar shows of the last epoch.

        Args:
            best_loss: Lowest held-out loss so far, in nats.
        """
        last = {name: values[-1] for name, values in self.items()}
        return {
            "nll": f"{last['validation_loss']:.3f}",
            "best": f"{best_loss:.3f}",
            "energy nll": f"{last['validation_energy_loss']:.3f}",
            "KL(flow|energy)": f"{last['validation_kl_flow_energy']:.2f}",
            "ESS": f"{last['validation_ess']:.2f}",
            "λ": "/".join(f"{value:.2f}" for value in last["multipliers"]),
        }


def track(
    summarize: Callable[[], Tracker],
    history: Mapping[str, list[Any]],
    first_epoch: int,
) -> None:
    """Send the epochs of a training to a tracker; give a warning if that fails.

    Args:
        summarize: Sends what sbi sends, and returns the tracker.
        history: One list for each quantity, with one entry for each epoch.
        first_epoch: The first epoch to send.
    """
    try:
        tracker = summarize()
        for name, values in history.items():
            if name in LOGGED_BY_SBI and first_epoch == 0:
                continue  # after resuming twice, sbi looks for them in the wrong place
            for epoch, value in enumerate(values[first_epoch:], first_epoch):
                if isinstance(value, list):
                    for part, number in zip(TERMS, value, strict=True):
                        tracker.log_metric(f"{name}/{part}", number, step=epoch)
                else:
                    tracker.log_metric(name, value, step=epoch)
        tracker.flush()
    except Exception as error:
        warnings.warn(
            f"The tracker failed, and lacks a part of this training: {error!r}. The "
            "training itself is kept, and `summary` has all of it.",
            stacklevel=3,
        )
