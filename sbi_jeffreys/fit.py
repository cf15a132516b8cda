"""The models of a trainer, fitted to its simulations."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import TrainConfig
from sbi_jeffreys.data.batches import (
    Batches,
    CalibrationKernel,
    SlicedBatches,
    check_shares,
    scale_weights,
)
from sbi_jeffreys.data.processes import all_have
from sbi_jeffreys.data.store import SimulationStore, unit_weights
from sbi_jeffreys.models.building import PairBuilder
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.options import JeffreysOptions
from sbi_jeffreys.pool.registry import POOL_MODELS
from sbi_jeffreys.proposals.mixture import ProposalMixture
from sbi_jeffreys.proposals.source import mixture_of
from sbi_jeffreys.stages import Stages
from sbi_jeffreys.training.checkpoint_file import CheckpointFile
from sbi_jeffreys.training.loop import JeffreysTraining
from sbi_jeffreys.training.schedule import Cycles


@dataclass(frozen=True)
class Report:
    """What one call of `Fit.run` gave.

    Attributes:
        flow: The trained flow.
        rows: Rows of the simulations to train on, and held-out ones.
        results: Numbers of this call, by their name in `summary`.
        history: One list for each quantity, with one entry for each epoch so far.
        first_epoch: The epoch of the history at which this call began.
        has_converged: Whether training ended by itself, before `max_num_epochs`.
    """

    flow: ConditionalFlow
    rows: tuple[Tensor, Tensor]
    results: dict[str, float]
    history: dict[str, list[Any]]
    first_epoch: int
    has_converged: bool


class Fit:
    """The models of a trainer, and all that their training continues from.

    A call of `run` that raises an exception changes nothing.

    Attributes:
        energy: The energy that is kept, pooled or not; None before training.
        training: The training of the networks; None before training.
        mixture: The density of the parameters that they are trained on; None if it is the
            prior.
        rows: Rows of the simulations that they are trained on, and held-out ones.
        chosen: Such rows for the next training, if they were chosen already.
    """

    def __init__(
        self,
        simulations: SimulationStore,
        build_pair: PairBuilder,
        options: JeffreysOptions,
        pool: Collection[str],
        show_progress: bool,
    ) -> None:
        """
        Args:
            simulations: What the models are fitted to.
            build_pair: Builds the networks.
            options: Options of the method.
            pool: Names of the models that the energy is pooled with.
            show_progress: Whether to show progress bars.
        """
        self.simulations = simulations
        self.build_pair = build_pair
        self.options = options
        self.pool = pool
        self.show_progress = show_progress
        self.energy: ConditionalEnergy | None = None
        self.training: JeffreysTraining | None = None
        self.mixture: ProposalMixture | None = None
        self.rows: tuple[Tensor, Tensor] | None = None
        self.chosen: tuple[Tensor, Tensor] | None = None

    @property
    def networks(self) -> ModelPair | None:
        """Flow and energy as trained together; None before training."""
        return None if self.training is None else self.training.pair

    @property
    def num_simulations(self) -> int:
        """Simulations of the last training, held-out ones included."""
        return sum(map(len, self.rows or ()))

    @property
    def _begins_round(self) -> bool:
        """Whether simulations from a proposal were appended since the last training."""
        is_new = self.chosen is not None or len(self.simulations) > self.num_simulations
        return self.simulations.is_sequential and is_new

    def check(
        self, config: TrainConfig, goes_on: bool, checkpoint: str | Path | None
    ) -> None:
        """Check that there is something to train on, and that it is clear how.

        Args:
            config: Arguments of `train`.
            goes_on: Whether to train again from the present weights.
            checkpoint: As in `run`.

        Raises:
            RuntimeError: If there are no simulations, or there is no training to resume.
            ValueError: If there are too few simulations, if processes differ in their
                number, or if arguments contradict each other or what was done before.
        """
        self.simulations.check_enough(config.validation_fraction)
        num = len(self.simulations)
        if not all_have(num, self.build_pair.device):
            raise ValueError(
                "Expected the same simulations in all processes that train together, but "
                f"their numbers differ; this one has {num}."
            )
        if config.resume_training and config.retrain_from_scratch:
            raise ValueError(
                "Expected at most one of `resume_training` and `retrain_from_scratch`."
            )
        if config.resume_training:
            if self.training is None:
                if checkpoint is not None and Path(checkpoint).exists():
                    return
                raise RuntimeError(
                    "There is no training to resume: call `.train()` without "
                    "`resume_training` first."
                )
            if new := num - self.num_simulations:
                warnings.warn(
                    "Resuming continues with the earlier simulations. The "
                    f"{new} that were appended since are not used. "
                    "`train(force_first_round_loss=True)` trains on all of them.",
                    stacklevel=3,
                )
        elif self.networks is not None and not (
            goes_on or config.retrain_from_scratch or self._begins_round
        ):
            raise ValueError(
                "This JNPE has already been trained. Set `resume_training=True` to "
                "continue, `force_first_round_loss=True` to go on from its weights with "
                "all simulations, or `retrain_from_scratch=True` to start anew."
            )

    def run(
        self,
        config: TrainConfig,
        prior: Distribution | None,
        calibration_kernel: CalibrationKernel | None,
        dataloader_kwargs: dict[str, Any] | None,
        patience: int | None,
        checkpoint: str | Path | None = None,
    ) -> Report:
        """Train the networks, pool the energy, and let the flow follow it.

        Args:
            config: Arguments of `train`, without `stop_after_epochs`.
            patience: `stop_after_epochs`, or None for the default rule.
            prior: The prior of the parameters, or None.
            calibration_kernel: Maps x to weights of simulations, `(batch,)`; or None.
            dataloader_kwargs: As in sbi.
            checkpoint: File to keep the training in. If it is there, a trainer that was
                not trained goes on from it, unless it is to train from scratch.

        Raises:
            ValueError: If there are no batches, processes can't share them, or the file
                is not of this training.
            TypeError: If the flow can't be sampled differentiably.
            FloatingPointError: If the loss is not finite in the very first epoch.
        """
        resumes = config.resume_training and self.training is not None
        mixture, rows = self.mixture, self.rows
        if not resumes:
            mixture = mixture_of(self.simulations.sources, prior)
            rows = self.chosen or self._split(config.validation_fraction)
        file = kept = None
        if checkpoint is not None:
            file = CheckpointFile(Path(checkpoint), self._identity(config))
            kept = file.read()
            if self.training is not None or config.retrain_from_scratch:
                kept = None
        if kept is not None:
            rows = kept.rows
        assert rows is not None
        batches, held_out = (
            self._batches(some, config, calibration_kernel, dataloader_kwargs)
            for some in rows
        )
        check_shares(batches)
        if not (len(batches) and len(held_out)):
            raise ValueError(
                "Expected `dataloader_kwargs` that leave a batch to train and one to "
                f"validate on, got {len(batches)} and {len(held_out)} batches."
            )
        training = self.training
        if training is None or not resumes:
            training = self._new_training(config, rows, mixture or prior)
        first_epoch = training.epoch
        if file is not None:
            file.rows = rows
        if kept is not None:
            training.load_state_dict(kept.training)
        # The pool ignores weights, and does not see what a data loader delivers.
        pools = bool(self.pool) and calibration_kernel is None
        pools &= isinstance(batches, SlicedBatches) and min(map(len, rows)) > 1
        stages = Stages(
            training,
            self.simulations,
            rows,
            batches,
            held_out,
            config,
            patience,
            prior,
            mixture,
            self.show_progress,
        )
        weights, pooled_loss = dict.fromkeys(POOL_MODELS, 0.0), nan
        emulated = None
        with training.call(file):
            one_cycle = pools and not stages.embedding_learns
            end = training.end_of_cycle() if one_cycle else None
            work = stages.work_after_networks if pools else 0.0
            has_converged = stages.train(end, work)
            energy = training.pair.energy
            if pools:
                try:
                    pooled = stages.pool(self.pool, has_converged)
                    energy, has_converged = pooled.energy, pooled.has_converged
                    weights |= pooled.weights
                    pooled_loss = pooled.loss
                    emulated = pooled.emulated
                except (KeyboardInterrupt, RuntimeError, ValueError) as error:
                    training.was_interrupted |= isinstance(error, KeyboardInterrupt)
                    training.load_best()
                    warnings.warn(
                        "The energy could not be pooled with simpler models, and is that "
                        f"of its networks alone: {error!r}.",
                        stacklevel=3,
                    )
            if not any(weights.values()):
                energy = training.pair.energy_with_own_embedding()
            if mixture is not None:
                stages.return_to_prior(energy, emulated)
            followed_loss = training.recall_followed()
        self.training, self.energy, self.mixture = training, energy, mixture
        self.rows, self.chosen = rows, self.chosen if resumes else None
        results = {
            "epochs_trained": training.epoch,
            "best_validation_loss": training.best_loss,
            "pooled_validation_loss": pooled_loss,
            "followed_validation_loss": followed_loss,
        }
        results |= {f"{name}_weight": weight for name, weight in weights.items()}
        flow, history = training.pair.flow, training.history
        return Report(flow, rows, results, history, first_epoch, has_converged)

    def hold_out(self, validation_fraction: float) -> None:
        """Choose the rows of the next training. Those of earlier rounds stay held out.

        Args:
            validation_fraction: Fraction that is held out; see `check` for its errors.
        """
        self.simulations.check_enough(validation_fraction)
        self.chosen = self._split(validation_fraction)

    def _split(self, validation_fraction: float) -> tuple[Tensor, Tensor]:
        """Return rows to train on and held-out ones; earlier rounds keep theirs."""
        earlier = None
        if self.simulations.is_sequential:
            earlier = self.chosen or self.rows
        start = sum(map(len, earlier or ()))
        training, held_out = self.simulations.split(validation_fraction, start)
        if earlier is not None:
            training = torch.cat([earlier[0], training])
            held_out = torch.cat([earlier[1], held_out])
        return training, held_out

    def _batches(
        self,
        rows: Tensor,
        config: TrainConfig,
        calibration_kernel: CalibrationKernel | None,
        dataloader_kwargs: dict[str, Any] | None,
    ) -> Batches:
        """Return batches of some rows, whose weights have a mean of one."""
        batches = self.simulations.batches(
            rows,
            config.training_batch_size,
            calibration_kernel or unit_weights,
            dataloader_kwargs,
        )
        if calibration_kernel is not None:
            scale_weights(batches)
        return batches

    def _identity(self, config: TrainConfig) -> dict[str, Any]:
        """Return what has to be the same to go on from a checkpoint, by name."""
        names = "training_batch_size", "learning_rate", "validation_fraction"
        return {
            "simulations": self.simulations.digest(),
            **{name: getattr(config, name) for name in (*names, "clip_max_norm")},
            "options": str(self.options),
            "pool": sorted(self.pool),
            "device": str(self.build_pair.device),
        }

    def _new_training(
        self,
        config: TrainConfig,
        rows: tuple[Tensor, Tensor],
        prior: Distribution | None,
    ) -> JeffreysTraining:
        """Return a training of the present networks, or of new ones."""
        networks = self.networks
        is_new_round = isinstance(prior, ProposalMixture)
        if networks is None or config.retrain_from_scratch or is_new_round:
            theta, x = self.simulations.rows_to_standardize(rows[0])
            networks = self.build_pair(theta, x, prior)
        device, rate = self.build_pair.device, config.learning_rate
        return JeffreysTraining(
            networks.flow.to(device),
            networks.energy.to(device),
            self.options.multipliers(device),
            self.options.step,
            cycles=Cycles.of(sum(map(len, rows))),
            learning_rate=rate,
            energy_learning_rate=self.options.energy_learning_rate or 2 * rate,
        )
