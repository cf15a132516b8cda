"""JNPE: the constrained Jeffreys method behind sbi's trainer interface."""

import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import sbi.inference
import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.tensorboard.writer import SummaryWriter

from sbi_jeffreys._sbi import SbiTrainer
from sbi_jeffreys.data.arrays import evenly_spaced
from sbi_jeffreys.data.batches import CalibrationKernel
from sbi_jeffreys.data.processes import first_random_state, process_rank
from sbi_jeffreys.data.store import SimulationStore
from sbi_jeffreys.fit import Fit
from sbi_jeffreys.models.building import (
    EnergyBuilder,
    FlowChoice,
    PairBuilder,
    flow_builder,
)
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.log_ratio import LogRatioNet
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.models.prior_checks import check_can_serve, with_one_axis
from sbi_jeffreys.options import JeffreysOptions, train_config
from sbi_jeffreys.pool.registry import pool_models
from sbi_jeffreys.posteriors.builder import PosteriorBuilder
from sbi_jeffreys.preprocessing.true_support import with_true_support
from sbi_jeffreys.proposals.source import describe
from sbi_jeffreys.training.history import track


class JNPE(SbiTrainer):
    r"""Jeffreys neural posterior estimation: sbi's NPE, trained to resist overfitting.

    JNPE trains a conditional flow :math:`p_\phi(\theta | x)` together with a conditional
    energy-based model :math:`q_\psi(\theta | x)`. Both fit the simulations by maximum
    likelihood, and the flow is drawn to the energy by the reverse KL divergence on its
    own samples. The weights of the three divergences are the multipliers of a resilient
    constrained problem (Ben-Dov & Chamon, arXiv:2511.11159; Hounie, Ribeiro & Chamon,
    arXiv:2306.02426). Then the energy is pooled with simpler models of the simulator,
    with the weights that fit held-out simulations best, and the flow follows it.

    The arguments of sbi's NPE come in its order and mean the same. The posterior is
    amortised over x, unless simulations come from proposals about one x (`rounds`).

    Example:
        trainer = JNPE(prior)
        trainer.append_simulations(theta, x).train()
        posterior = trainer.build_posterior(sample_with="energy")
        samples = posterior.sample((1000,), x=x_o)
    """

    train_indices: Any = ()
    val_indices: Any = ()

    def __init__(
        self,
        prior: Distribution | None = None,
        density_estimator: FlowChoice = "nsf",
        device: str = "cpu",
        logging_level: int | str = "WARNING",
        summary_writer: SummaryWriter | None = None,
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        *,
        embedding_net: nn.Module | None = None,
        energy_net: nn.Module | EnergyBuilder = LogRatioNet,
        energy_embedding_net: nn.Module | None = None,
        pool: bool | Collection[str] = True,
        **options: Any,
    ) -> None:
        r"""Arguments that are not listed here are those of sbi's NPE.

        Args:
            prior: The distribution of the parameters. No sample is where its density is
                zero. Draws are rejected unless the types of the prior and its parts say
                that its density is positive between bounds.
            density_estimator: "nsf" or None, the neural spline flow of this package; the
                name of another flow of sbi ("maf", ...); or a builder, or a configuration
                that has `build`. Builders get standardised, unconstrained parameters
                `(N, D)` and simulations `(N, ...)`, and return an nflows or zuko
                estimator, or one of a type that is registered with `condition_on`.
            embedding_net: Embeds standardised x for both models, where
                `density_estimator` is a name. By default "nsf" takes the logarithm of
                positive, skewed entries of x and scales down entries that show no
                dependence on the parameters (`preprocessing`). `nn.Flatten()` does not.
            energy_net: The log-ratio network, or a builder such as
                `partial(LogRatioNet, hidden_features=256)` that takes the numbers of
                parameters and of embedded features of x. The network maps standardised
                parameters `(sample, batch, D)` and embedded x `(batch, features)` to
                `(sample, batch)`, and should start at zero.
            energy_embedding_net: Embeds x for the energy, in place of the flow's.
            pool: Whether to pool the energy with simpler models, or the names of these:
                "linear_model", "exponential_family", "synthetic_likelihood". With False,
                training is the paper's method alone.
            options: Options of the method, by name; see `JeffreysOptions`.

        Raises:
            TypeError: If an option is unknown, or an argument is no flow or network.
            ValueError: If an option is out of range, `prior` is discrete, a batch, or on
                a surface such as the simplex, or there is no model of a name in `pool`.
        """
        check_can_serve(prior)
        names = pool_models(pool)
        method = JeffreysOptions(**options)
        build_flow = flow_builder(density_estimator, embedding_net)
        super().__init__(
            prior=with_one_axis(prior),
            density_estimator=build_flow,
            device=device,
            logging_level=logging_level,
            summary_writer=summary_writer,
            tracker=tracker,
            show_progress_bars=show_progress_bars,
        )
        self._given_prior = prior
        self._simulations = SimulationStore(self.device)
        build_pair = PairBuilder(
            build_flow, energy_net, energy_embedding_net, method.num_energies, self.device
        )
        self._fit = Fit(self._simulations, build_pair, method, names, show_progress_bars)

    @property
    def energy(self) -> ConditionalEnergy:
        r"""The trained energy :math:`f(\theta, x)`, an unnormalised log posterior.

        Raises:
            RuntimeError: Before training.
        """
        if self._fit.energy is None:
            raise RuntimeError("There is no energy yet: call `.train()` first.")
        return self._fit.energy

    @property
    def latest(self) -> ModelPair:
        """Flow and energy, averaged up to the last epoch, whether it was the best or not.

        The energy is that of its networks alone, without the pool.

        Raises:
            RuntimeError: Before training.
        """
        if self._fit.training is None:
            raise RuntimeError("There are no models yet: call `.train()` first.")
        return self._fit.training.latest

    def append_simulations(
        self,
        theta: Tensor | np.ndarray,
        x: Tensor | np.ndarray,
        proposal: Any = None,
        exclude_invalid_x: bool | None = None,
        data_device: str | None = None,
    ) -> Self:
        """Store simulations. As in sbi, those with invalid x are left out.

        Float32 is kept without a copy: do not change it before training ends. Other real
        numbers are rounded to it. A memory-mapped array (`numpy.load(path,
        mmap_mode="r")`) stays on disk. If some rows are invalid, the valid ones are
        copied to memory. A pickled trainer holds a copy of all.

        Args:
            theta: Parameters, shape `(N, D)`; or `(N,)` for one parameter.
            x: Simulations, shape `(N, ...)` or `(N,)`. Masked entries count as NaN.
            proposal: What `theta` was drawn from: None or the prior; a posterior with a
                default x; a distribution; a `RestrictedPrior` made from the prior; or
                log densities of `theta` in nats, shape `(N,)`. Rounds may differ in it.
            exclude_invalid_x: Whether to drop simulations with NaN or infinite x (the
                default). Kept ones must be embedded, and x_o may then have NaN, too.
            data_device: Where to keep the data; by default where training is, or on disk.

        Raises:
            TypeError: If `theta` or `x` is not real, or is mapped and not float32, or if
                `proposal` is nothing that parameters can be drawn from.
            ValueError: If no simulation is valid, some `theta` can't be of the prior,
                shapes or `data_device` are not as before, or the density of `proposal`
                is zero at some `theta`, or not normalised.
        """
        if proposal is self._given_prior:
            proposal = self.proper_prior
        self._simulations.append(
            theta,
            x,
            self.proper_prior and with_true_support(self.proper_prior),
            exclude_invalid_x is not False,
            data_device,
            partial(describe, proposal, self.proper_prior),
        )
        if self.proper_prior is None:
            values = torch.cat(evenly_spaced(*self._simulations.theta)).to(self.device)
            self.use_as_prior(values, torch.ones_like(values[:, 0]))
        return self

    def get_simulations(self, starting_round: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return parameters `(N, D)`, simulations `(N, ...)` and masks `(N, 1)`.

        Args:
            starting_round: The first round of which simulations are returned, from 0.
        """
        theta, x = self._simulations.tensors(starting_round)
        return theta, x, torch.ones(len(theta), 1, dtype=torch.bool)

    @property
    def has_simulations(self) -> bool:
        """Whether simulations were appended."""
        return len(self._simulations) > 0

    def hold_out(self, validation_fraction: float = 0.1) -> None:
        """Choose now, and not later, what the next `train` holds out.

        Args:
            validation_fraction: As in `train`, with its errors. In rounds, of new pairs.
        """
        self._fit.hold_out(validation_fraction)

    def train(
        self,
        num_atoms: int = 10,
        training_batch_size: int = 200,
        learning_rate: float = 4e-3,
        validation_fraction: float = 0.1,
        stop_after_epochs: int | None = None,
        max_num_epochs: int = 2**31 - 1,
        clip_max_norm: float | None = 5.0,
        calibration_kernel: CalibrationKernel | None = None,
        resume_training: bool = False,
        force_first_round_loss: bool = False,
        discard_prior_samples: bool = False,
        use_combined_loss: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        checkpoint: str | Path | None = None,
    ) -> ConditionalDensityEstimator:
        """Train the flow and the energy, and return the flow.

        The weights that are kept are averages over steps, of the epoch with the lowest
        held-out negative log-likelihood of the flow. Learning rates fall to zero in
        cycles. After the first cycle the pool's models are fitted, and the flow learns
        from what they emulate. The networks go on for as long as they have a part in the
        pool. Then the flow follows the pooled energy; see `stages`.

        After simulations from a `proposal`, training starts anew with all of them. The
        density of all their parameters is the energy's base until it ends, the prior
        afterwards. `num_atoms`, `discard_prior_samples`, `use_combined_loss`: no effect.

        Args:
            training_batch_size: Pairs in a batch, at most the training set. Processes
                that train together share a batch.
            learning_rate: Adam's largest, for the flow; twice that for the energy.
            validation_fraction: Fraction of simulations that is held out.
            stop_after_epochs: Epochs without a better held-out loss before the networks
                stop; by default at the end of a cycle that gained less than 0.01 nats.
            max_num_epochs: Most epochs of the networks, over all calls that resume. With
                fewer than 40, the pool and the following are shortened in proportion.
            clip_max_norm: Bound on each model's gradient norm; None for no clipping.
            calibration_kernel: Weights of simulations, from x to `(batch,)`; divided by
                their mean. The energy is then not pooled, as the pool ignores weights.
            resume_training: Continue exactly where the last call stopped or was
                interrupted. Simulations appended since are not used, with a warning.
            force_first_round_loss: Train again from the present weights, for example on
                more simulations.
            retrain_from_scratch: Train again with new networks, on all simulations.
                Modules that were passed to the constructor keep their weights.
            dataloader_kwargs: As in sbi. With your own sampler or collation a data
                loader delivers the batches, and the energy is not pooled. Otherwise
                batches are sliced by index, which is faster.
            checkpoint: File to keep the training in, about twice a minute. If it is there
                already, a new trainer with the same simulations goes on from it, exactly.

        Returns:
            The flow, with all gradients None. `summary` then holds sbi's entries and
            those of `training.history`, one for each epoch; and for each call the weight
            of each simpler model, such as `linear_model_weight`;
            `pooled_validation_loss`, that of the corrected posterior; and
            `followed_validation_loss`, that of the returned flow. The last is too low,
            because the pool was then fitted to the held-out pairs, too.

        Raises:
            RuntimeError: If there are no simulations, or there is no training to resume.
            ValueError: If an argument is out of range, if there are too few simulations,
                if JNPE was trained before and the arguments do not say how to go on, or
                if processes can't share the batches or differ in their simulations.
            TypeError: If `density_estimator` can't be sampled differentiably.
            FloatingPointError: If the loss is not finite in the very first epoch.
        """
        config = train_config(
            training_batch_size=training_batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            stop_after_epochs=stop_after_epochs,
            max_num_epochs=max_num_epochs,
            clip_max_norm=clip_max_norm,
            resume_training=resume_training,
            retrain_from_scratch=retrain_from_scratch,
            show_train_summary=show_train_summary,
        )
        self._fit.check(config, force_first_round_loss, checkpoint)
        with first_random_state(self.device):
            report = self._fit.run(
                config,
                self.proper_prior,
                calibration_kernel,
                dataloader_kwargs,
                stop_after_epochs,
                checkpoint,
            )
        self.flow = report.flow
        self.train_indices, self.val_indices = report.rows
        self.record_training(report.results, report.history, report.first_epoch)
        if not report.has_converged:
            warnings.warn(
                f"Training stopped at `max_num_epochs={max_num_epochs}`, before the "
                "held-out loss stalled. Consider increasing it.",
                stacklevel=2,
            )
        if process_rank() == 0:
            track(self.summarize, report.history, report.first_epoch)
        if show_train_summary:
            print(self.describe_training())
        return self.flow

    def posterior_builder(self) -> PosteriorBuilder:
        """Return what builds posteriors of the present models."""
        return PosteriorBuilder(
            self._fit.networks,
            self._fit.energy,
            self._simulations,
            self._fit.num_simulations,
            not self._simulations.is_sequential,
            self._fit.show_progress,
        )


def register() -> None:
    """Make `sbi.inference.infer(..., method="jnpe")` find `JNPE`."""
    sbi.inference.JNPE = JNPE
