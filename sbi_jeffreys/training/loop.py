"""The training of a flow and an energy, and what it keeps between calls."""

import torch

from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.processes import share_tensors
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.objective.multipliers import FixedMultipliers, ResilientMultipliers
from sbi_jeffreys.training.early_stopping import EarlyStopping
from sbi_jeffreys.training.epochs import EpochLoop
from sbi_jeffreys.training.following import FollowedFlow, Guide, follow
from sbi_jeffreys.training.schedule import Cycles
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
        super().__init__(
            step, EarlyStopping(), cycles, seed=int(torch.randint(2**31, ()))
        )
        self.learning_rate = learning_rate
        self.followed: FollowedFlow | None = None

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
