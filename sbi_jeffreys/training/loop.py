"""The training of a flow and an energy, and what it keeps between calls."""

import torch

from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.processes import share_tensors
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.objective.multipliers import FixedMultipliers, ResilientMultipliers
from sbi_jeffreys.training.early_stopping import EarlyStopping
from sbi_jeffreys.training.epochs import EpochLoop
from sbi_jeffreys.training.following import FollowedFlow, follow
from sbi_jeffreys.training.step import PrimalDualStep, TrainedPair, TrainingOptions


class JeffreysTraining(EpochLoop):
    """Trains a pair in epochs, and lets its flow follow other energies.

    Attributes:
        followed: The flow that the last call of `follow` kept, or None.
    """

    def __init__(
        self,
        flow: ConditionalFlow,
        energy: ConditionalEnergy,
        multipliers: ResilientMultipliers | FixedMultipliers,
        options: TrainingOptions,
        learning_rate: float,
        energy_learning_rate: float,
    ) -> None:
        """
        Args:
            flow: p(θ|x), trained in place.
            energy: f(θ, x), trained in place.
            multipliers: Weights of the three divergences.
            options: See `TrainingOptions`.
            learning_rate: Learning rate of Adam for the flow.
            energy_learning_rate: Learning rate of Adam for the energy.
        """
        pair = TrainedPair(flow, energy, options)
        share_tensors([t.data for t in pair.state_dict().values()])
        step = PrimalDualStep(pair, multipliers, learning_rate, energy_learning_rate)
        super().__init__(step, EarlyStopping(), seed=int(torch.randint(2**31, ())))
        self.learning_rate = learning_rate
        self.followed: FollowedFlow | None = None

    def follow(
        self,
        energy: ConditionalEnergy,
        training: Batches,
        validation: Batches,
        max_num_epochs: int,
        stop_after_epochs: int,
        clip_max_norm: float | None,
        show_progress: bool,
    ) -> float:
        """Let the flow follow an energy, which stays as it is.

        It starts from the better of the trained flow and the flow that an earlier call
        kept, with half the learning rate. `run` goes on as if this had not been called.

        Args:
            energy: Another energy than that of the pair. Both may have the same log-ratio
                network, but not the same embedding network.
            training: Pairs whose x is used.
            validation: Held-out pairs.
            max_num_epochs: Most epochs of this call.
            stop_after_epochs: Number of epochs without a lower held-out loss after which
                to stop.
            clip_max_norm: Bound on the norm of the gradient; None for no bound.
            show_progress: Whether to show a progress bar.

        Returns:
            The flow's held-out negative log-likelihood, in nats.
        """
        self.followed = follow(
            self.pair.flow,
            energy,
            training,
            validation,
            options=self.pair.options,
            learning_rate=self.learning_rate / 2,
            best_loss=self.recall_followed(),
            seed=self.seed,
            device=self.device,
            max_num_epochs=max_num_epochs,
            stop_after_epochs=stop_after_epochs,
            clip_max_norm=clip_max_norm,
            show_progress=show_progress,
        )
        return self.followed.loss

    def recall_followed(self) -> float:
        """Restore the flow that an earlier `follow` kept, if its held-out loss is lower.

        Returns:
            The flow's held-out negative log-likelihood, in nats.
        """
        if self.followed is None or self.followed.loss >= self.best_loss:
            return self.best_loss
        self.pair.flow.load_state_dict(self.followed.weights)
        return self.followed.loss
