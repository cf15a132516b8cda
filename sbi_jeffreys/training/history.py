"""The record of a training: one list per quantity, with one entry per epoch."""

from typing import Any

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
