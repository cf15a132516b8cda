"""Early stopping: stop when the held-out loss has not fallen for a number of epochs."""

from typing import Any

MIN_GAIN = 0.01
"""Nats by which a cycle has to lower the loss, for the next one to be worth its time."""

STATE = ("best_loss", "loss_before", "epochs_since_best", "cycle_gained")
"""Attributes that a checkpoint has. `patience` is set by each call of `run`."""


class EarlyStopping:
    """Keeps the lowest held-out loss and counts the epochs since.

    Attributes:
        best_loss: Lowest loss so far, in nats.
        epochs_since_best: Number of epochs since that loss.
        loss_before: Lowest loss before the present cycle, in nats.
        cycle_gained: Whether the last whole cycle lowered the loss by `MIN_GAIN`.
        patience: Number of epochs without a lower loss after which to stop. None to stop
            at the end of a cycle that lowered the loss by less than `MIN_GAIN`.
    """

    def __init__(self, best_loss: float = float("inf")) -> None:
        """
        Args:
            best_loss: Only a loss below this one counts as better, in nats.
        """
        self.best_loss = best_loss
        self.loss_before = float("inf")
        self.epochs_since_best = 0
        self.cycle_gained = True
        self.patience: int | None = None

    @property
    def stalled(self) -> bool:
        """Whether the loss has not fallen for `patience` epochs, or in a cycle."""
        if self.patience is None:
            return not self.cycle_gained
        return self.epochs_since_best >= self.patience

    def end_cycle(self) -> None:
        """Note whether the cycle that ends lowered the loss."""
        self.cycle_gained = self.best_loss < self.loss_before - MIN_GAIN
        self.loss_before = self.best_loss

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
        """Return the state."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        for name in STATE:
            setattr(self, name, state[name])


class LastEpoch(EarlyStopping):
    """Counts each epoch as the best, where no held-out loss says which is."""

    def update(self, loss: float) -> bool:
        """Count an epoch; see `EarlyStopping.update`."""
        self.best_loss, self.epochs_since_best = loss, 0
        return True
