"""The training of a flow and an energy, and what it keeps between calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.processes import share_tensors
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.objective.multipliers import Multipliers
from sbi_jeffreys.training.checkpoint import (
    Checkpoint,
    FollowedFlow,
    Pooling,
    Unfinished,
    as_plain,
    copy_nested,
)
from sbi_jeffreys.training.checkpoint_file import CheckpointFile
from sbi_jeffreys.training.early_stopping import EarlyStopping
from sbi_jeffreys.training.epochs import EpochLoop
from sbi_jeffreys.training.following import Guide, follow
from sbi_jeffreys.training.history import History
from sbi_jeffreys.training.schedule import Cycles
from sbi_jeffreys.training.step import PrimalDualStep, TrainedPair, TrainingOptions


class JeffreysTraining(EpochLoop):
    """Trains a pair in epochs, and lets its flow follow other energies.

    Attributes:
        followed: The flow that the last call of `follow` kept, or None.
        unfinished: What the present call of `train` began with, or the last one if it was
            interrupted; None otherwise.
        file: Where the present call keeps the state, or None.
    """

    def __init__(
        self,
        flow: ConditionalFlow,
        energy: ConditionalEnergy,
        multipliers: Multipliers,
        options: TrainingOptions,
        learning_rate: float,
        energy_learning_rate: float,
        cycles: Cycles,
    ) -> None:
        """
        Args:
            flow: p(θ|x), trained in place.
            energy: f(θ, x), trained in place.
            multipliers: Weights of the three divergences.
            options: See `TrainingOptions`.
            learning_rate: Largest learning rate of Adam for the flow.
            energy_learning_rate: Largest learning rate of Adam for the energy.
            cycles: The learning rates' cycles.
        """
        pair = TrainedPair(flow, energy, options)
        share_tensors([t.data for t in pair.state_dict().values()])
        step = PrimalDualStep(pair, multipliers, learning_rate, energy_learning_rate)
        self.file: CheckpointFile | None = None
        super().__init__(
            step, EarlyStopping(), cycles, seed=int(torch.randint(2**31, ()))
        )
        self.learning_rate = learning_rate
        self.followed: FollowedFlow | None = None
        self.unfinished: Unfinished | None = None
        self._first_epoch = 0
        self._flow_loss = self.best_loss

    @contextmanager
    def call(self, file: CheckpointFile | None = None) -> Iterator[None]:
        """Run a call of `train` inside this context.

        After an exception all is as before the call. After an interrupt that left usable
        models, the next call redoes what this one did after its last epoch.

        Args:
            file: Where to keep the state on the way, or None.
        """
        before = self._checkpoint, copy_nested(self.pair.state_dict())
        others = self.followed, self.unfinished, self._flow_loss
        if self.unfinished is None:
            self.unfinished = Unfinished(self.epoch, self.followed)
        self.followed, self.file = self.unfinished.followed, file
        self._first_epoch, self.was_interrupted = self.epoch, False
        try:
            yield
            if file is not None:
                file.write(self.state_dict())
        except BaseException:
            self._checkpoint, weights = before
            self.followed, self.unfinished, self._flow_loss = others
            self._restore()
            self.pair.load_state_dict(weights)
            raise
        finally:
            self.file = None
        if not self.was_interrupted:
            self.unfinished = None

    def end_of_cycle(self) -> int:
        """Return the end of the cycle in which this call of `train` began."""
        epoch = self.epoch if self.unfinished is None else self.unfinished.epoch
        return self.cycles.end(epoch)

    def pooling(self, has_converged: bool) -> Pooling:
        """Return what pooling begins with, and bring the networks to this state.

        Args:
            has_converged: Whether the networks' training ended by itself.
        """
        kept = self.unfinished and self.unfinished.pooling
        if kept is None or self.epoch > self._first_epoch:
            kept = Pooling(self.best_weights, self.best_loss, has_converged, self.epoch)
            self.keep(kept)
        self.pair.load_state_dict(kept.weights)
        self._flow_loss = kept.flow_loss
        return kept

    def load_best(self) -> None:
        """Give the networks their best weights."""
        super().load_best()
        self._flow_loss = self.best_loss

    def keep(self, pooling: Pooling) -> None:
        """Keep what pooling is redone from, unless this call was interrupted before."""
        if self.unfinished is not None and not self.was_interrupted:
            self.unfinished = self.unfinished._replace(pooling=pooling)
            if self.file is not None:
                self.file.write(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return all that a new process needs to go on from the last whole epoch."""
        return {
            "seed": self.seed,
            "cycles": self.cycles.first,
            "history": dict(self.history),
            "checkpoint": as_plain(self._checkpoint),
            "unfinished": as_plain(self.unfinished),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, with models of the same shapes.

        Args:
            state: What `state_dict` returned, with all tensors on the CPU.

        Raises:
            ValueError: If the models have other weights.
        """
        self.seed, self.cycles = state["seed"], Cycles(state["cycles"])
        self.history = History(state["history"])
        self._checkpoint = Checkpoint.of_plain(state["checkpoint"], self.device)
        self.unfinished = Unfinished.of_plain(state["unfinished"])
        self.followed = self.unfinished.followed
        try:
            self._restore()
            self.load_best()
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                "The checkpoint is of other networks. Build the trainer with the same "
                f"arguments, or give another path. {error}"
            ) from error

    def _save(self) -> None:
        super()._save()
        if self.file is not None:
            ends_cycle = self.epoch == self.cycles.end(self.epoch - 1)
            self.file.offer(self.state_dict, at_once=ends_cycle)

    def follow(
        self,
        guide: Guide,
        validation: Batches,
        clip_max_norm: float | None,
        show_progress: bool,
    ) -> float:
        """Let the flow follow an energy, which stays as it is; see `following`.

        It starts from the better of the trained flow and the flow that an earlier call
        kept. `run` goes on as if this had not been called.

        Args:
            guide: What the flow follows. Its energy may have the log-ratio network of
                the pair's, but not the same embedding network.
            validation: Held-out pairs.
            clip_max_norm: Bound on the norm of the gradient; None for no bound.
            show_progress: Whether to show a progress bar.

        Returns:
            The flow's held-out negative log-likelihood, in nats.
        """
        self.followed = follow(
            self.pair.flow,
            guide,
            validation,
            options=self.pair.options,
            learning_rate=self.learning_rate,
            best_loss=self.recall_followed(),
            seed=self.seed,
            device=self.device,
            clip_max_norm=clip_max_norm,
            show_progress=show_progress,
        )
        self.was_interrupted |= self.followed.was_interrupted
        return self.followed.loss

    def recall_followed(self) -> float:
        """Restore the flow that an earlier `follow` kept, if its held-out loss is lower.

        Returns:
            The flow's held-out negative log-likelihood, in nats.
        """
        if self.followed is None or self.followed.loss >= self._flow_loss:
            return self._flow_loss
        self.pair.flow.load_state_dict(self.followed.weights)
        return self.followed.loss
