"""Early stopping: stop when the held-out loss has not fallen for a number of epochs."""

from typing import Any


class EarlyStopping:
    """Keeps the lowest held-out loss and counts the epochs since.

    Attributes:
        best_loss: Lowest loss so far, in nats.
        epochs_since_best: Number of epochs since that loss.
        patience: Number of epochs without a lower loss after which to stop.
    """

    def __init__(self, best_loss: float = float("inf")) -> None:
        """
        Args:
            best_loss: Only a loss below this one counts as better, in nats.
        """
        self.best_loss = best_loss
        self.epochs_since_best = 0
        self.patience = 0

    @property
    def stalled(self) -> bool:
        """Whether the loss has not fallen for `patience` epochs."""
        return self.epochs_since_best >= self.patience

    def update(self, loss: float) -> bool:
        """Count an epoch.

        Args:
            loss: Its held-out loss, in nats.

        Returns:
            Whether the loss is lower than all before.
        """
        is_best = loss < self.best_loss
        self.best_loss = loss if is_best else self.best_loss
        self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Return the state, without `patience`, which each call of `run` sets."""
        return {
            "best_loss": self.best_loss,
            "epochs_since_best": self.epochs_since_best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.best_loss = state["best_loss"]
        self.epochs_since_best = state["epochs_since_best"]
