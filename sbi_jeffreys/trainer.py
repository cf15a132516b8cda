"""JNPE: the constrained Jeffreys method behind sbi's trainer interface."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import numpy as np
import sbi.inference
import torch
from sbi.inference.trainers._contracts import LossArgs, LossArgsNPE, TrainConfig
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.neural_nets.factory import model_builders
from sbi.sbi_types import Tracker
from sbi.utils.sbiutils import ImproperEmpirical
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import DataLoader
from torch.utils.tensorboard.writer import SummaryWriter

from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.data.batches import Batches, SlicedBatches, batches_from, scale_weights
from sbi_jeffreys.data.processes import (
    all_have,
    first_random_state,
    num_processes,
    process_rank,
)
from sbi_jeffreys.models.conditional import condition_on
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.log_ratio import LogRatioEnsemble, LogRatioNet
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.models.prior_base import base_density, log_prior_floor
from sbi_jeffreys.models.spline_flow import build_spline_flow
from sbi_jeffreys.objective.multipliers import FixedMultipliers, ResilientMultipliers
from sbi_jeffreys.objective.normalizers import NORMALIZERS, Normalizer
from sbi_jeffreys.pool.opinion_pool import Weights, fit_pool
from sbi_jeffreys.posteriors.builder import BothPosteriors
from sbi_jeffreys.preprocessing.embedding import standardizing_embedding
from sbi_jeffreys.preprocessing.support import support_of
from sbi_jeffreys.training.history import TERMS
from sbi_jeffreys.training.loop import JeffreysTraining
from sbi_jeffreys.training.step import TrainingOptions

FlowBuilder = Callable[[Tensor, Tensor], ConditionalDensityEstimator]
EnergyBuilder = Callable[[int, int], nn.Module]

PATIENCE, LEAST_PATIENCE, MOST_PATIENCE = 200_000, 20, 200
"""Simulations seen, with repetition, without a better held-out loss before training
stops; but at least, and at most, so many epochs."""


class JNPE(BothPosteriors):
    r"""Jeffreys neural posterior estimation: `sbi`'s NPE, trained to resist overfitting.

    Trains a conditional flow $p_\phi(\theta | x)$, which becomes the posterior, together
    with a conditional energy-based model $q_\psi(\theta | x)$, by the constrained
    Jeffreys objective: both fit the simulations by maximum likelihood, and the flow is
    drawn to the energy by the reverse KL divergence on its own samples, of which there
    is no end. Weights of the three divergences adapt as multipliers of a resilient
    constrained problem. (Ben-Dov & Chamon, arXiv:2511.11159; Hounie, Ribeiro & Chamon,
    arXiv:2306.02426.) After training, the energy is pooled with a linear model of the
    simulator, an exponential family and a synthetic likelihood, with the weights that
    fit held-out simulations best (`pool`).

    Arguments of `sbi`'s NPE come in its order and mean the same. One round of
    simulations is amortised over x; truncated proposals (`RestrictedPrior`) work too.

    Example:
        trainer = JNPE(prior)
        trainer.append_simulations(theta, x).train()
        posterior = trainer.build_posterior()
        samples = posterior.sample((1000,), x=x_o)
    """

    def __init__(
        self,
        prior: Distribution | None = None,
        density_estimator: str | FlowBuilder = "nsf",
        device: str = "cpu",
        logging_level: int | str = "WARNING",
        summary_writer: SummaryWriter | None = None,
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        *,
        embedding_net: nn.Module | None = None,
        energy_net: nn.Module | EnergyBuilder = LogRatioNet,
        energy_embedding_net: nn.Module | None = None,
        num_energies: int = 4,
        num_particles: int = 4,
        normalizer: Normalizer = "generalized",
        weighting: Literal["resilient", "fixed"] = "resilient",
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        slack: float | tuple[float, float, float] = 1.0,
        relaxation_cost: float = 1.0,
        multiplier_step_size: float = 0.02,
        multiplier_bounds: tuple[float, float] = (0.05, 3.0),
        energy_learning_rate: float | None = None,
    ) -> None:
        r"""
        Args:
            prior: The distribution of the parameters. Where its support is a product of
                intervals, half lines and lines, no sample leaves it.
            density_estimator: "nsf", the neural spline flow of this package; the name
                of another flow of `sbi` ("maf", "zuko_nsf", ...), in capitals or not;
                or a builder, called with standardised, unconstrained parameters
                `(N, D)` and simulations `(N, ...)`, that returns an nflows or zuko
                estimator.
            device: Where to train, e.g. "cpu" or "cuda".
            logging_level: As in `sbi`.
            summary_writer: Deprecated in `sbi`; use `tracker`.
            tracker: Receives losses, multipliers, divergences and ESS; a TensorBoard
                tracker by default.
            show_progress_bars: Whether to show progress while training and sampling.
            embedding_net: Embeds standardised x, for the flow and the energy. Where
                `density_estimator` is a builder, give it to that instead. By default
                "nsf" flattens x, takes the logarithm of entries that are positive and
                skewed (`log_scale`), and scales down those that show no dependence on
                the parameters (`screening`); `nn.Flatten()` does only the first.
            energy_net: The log-ratio network: a builder, called with the number of
                parameters and of embedded features of x, for example
                `partial(LogRatioNet, hidden_features=256)`; or a module. It is called
                with standardised parameters `(sample, batch, D)` and embedded x
                `(batch, features)` and returns `(sample, batch)`. It should start
                at zero.
            energy_embedding_net: Embeds x for the energy, instead of the flow's.
            num_energies: Networks that `energy_net`, if a builder, is called for. Each
                fits the data by itself; the energy is their average, which overfits
                less. With a single one training is faster.
            num_particles: Draws from the flow for each x of a batch.
            normalizer: Estimate of the energy model's normaliser: "generalized",
                "importance" or "ranking" (see `objective.normalizers`).
            weighting: "resilient" adapts the weights of the divergences; "fixed" is the
                penalty problem.
            weights: The three weights, for "fixed": of the flow's fit to the data, of
                the flow's reverse KL to the energy, of the energy's fit to the data.
            slack: $\kappa$ in nats, one for all divergences or three. A divergence of
                zero keeps the weight `slack * relaxation_cost`; one of `-slack`,
                memorisation, loses it. With a small one for the flow's fit, (0.2, 1, 1),
                the flow follows the energy sooner; of what was tried, that was better
                on gaussian_linear and worse on two_moons.
            relaxation_cost: $\alpha$, weight per nat of divergence.
            multiplier_step_size: Step of the dual ascent.
            multiplier_bounds: Least and largest multiplier.
            energy_learning_rate: Of the energy; by default twice the flow's.

        Raises:
            ValueError: If an option has a value it can't have, or the prior is several
                distributions.
        """
        _check_prior(prior)
        _check_options(
            num_energies=num_energies,
            num_particles=num_particles,
            normalizer=normalizer,
            weighting=weighting,
            weights=weights,
            slack=slack,
            relaxation_cost=relaxation_cost,
            multiplier_step_size=multiplier_step_size,
            multiplier_bounds=multiplier_bounds,
            energy_learning_rate=energy_learning_rate,
        )
        self._density_estimator = _flow_builder(density_estimator, embedding_net)
        super().__init__(
            prior=prior,
            density_estimator=self._build_estimators,
            device=device,
            logging_level=logging_level,
            summary_writer=summary_writer,
            tracker=tracker,
            show_progress_bars=show_progress_bars,
        )
        self._energy_net = energy_net
        self._energy_embedding_net = energy_embedding_net
        self._num_energies = num_energies
        self._energy_learning_rate = energy_learning_rate
        self._options = TrainingOptions(
            num_particles=num_particles, normalizer=normalizer
        )
        self._weighting = weighting
        self._weights = weights
        self._resilience: dict[str, Any] = {
            "slack": slack,
            "relaxation_cost": relaxation_cost,
            "step_size": multiplier_step_size,
            "bounds": multiplier_bounds,
        }
        self._neural_net: Any = None
        self._trained_energy = None
        self._energy = None
        self._training: JeffreysTraining | None = None

    @property
    def latest(self) -> ModelPair:
        """Flow and energy as averaged up to the last epoch, whether the best or not.

        The energy is that of its networks, not pooled with simpler models.

        Raises:
            RuntimeError: Before training.
        """
        if self._training is None:
            raise RuntimeError("There are no models yet: call `.train()` first.")
        return self._training.latest

    def train(
        self,
        num_atoms: int = 10,
        training_batch_size: int = 200,
        learning_rate: float = 2e-3,
        validation_fraction: float = 0.1,
        stop_after_epochs: int | None = None,
        max_num_epochs: int = 2**31 - 1,
        clip_max_norm: float | None = 5.0,
        calibration_kernel: Callable[[Tensor], Tensor] | None = None,
        resume_training: bool = False,
        force_first_round_loss: bool = False,
        discard_prior_samples: bool = False,
        use_combined_loss: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
    ) -> ConditionalDensityEstimator:
        """Train the flow and the energy, and return the flow.

        The weights kept are moving averages over steps, of the epoch with the lowest
        held-out negative log-likelihood of the flow. The learning rates halve whenever
        that has not fallen for half of `stop_after_epochs`. Then, if simpler models have
        a part in the energy (`pool`), the flow follows that by its reverse KL alone, with
        half the learning rate, a quarter of the patience, and for at most as many epochs;
        what lowers its held-out loss is kept.

        Args:
            num_atoms: Without effect; `sbi` uses it in later rounds.
            training_batch_size: Pairs in a batch, at most the training set. Where
                several processes train together (`distributed`), they share it.
            learning_rate: Of Adam, for the flow; the energy's is twice that, unless set.
            validation_fraction: Fraction of simulations held out.
            stop_after_epochs: Epochs without a better held-out loss before stopping. By
                default as many as show the networks 200,000 simulations, at most 200
                (for up to 1,000 simulations), but at least sbi's 20 (from 10,000): with
                few of them that loss is noisy and keeps falling after it seems to stall,
                and the multipliers make it safe to wait.
            max_num_epochs: Most epochs, over all calls that resume.
            clip_max_norm: Bound on the gradient norm of each model; None for no bound.
            calibration_kernel: Weights of simulations, from x to `(batch,)`. They are
                divided by their mean, of the training set and of those held out. The
                energy is then not pooled with simpler models, which would not know of
                them.
            resume_training: Continue where the last call stopped or was interrupted:
                the same split (of simulations appended since, none has a part, with a
                warning), optimisers with their rates, multipliers, entropy
                reference and random numbers.
            force_first_round_loss: Train again though trained before, for example on
                more simulations, from the present weights.
            discard_prior_samples: Without effect; `sbi` uses it in later rounds.
            use_combined_loss: Without effect; `sbi` uses it in later rounds.
            retrain_from_scratch: Train again, on all simulations there are, with new
                networks. Modules that were passed to the constructor keep their weights.
            show_train_summary: Whether to print epochs and loss at the end.
            dataloader_kwargs: As in `sbi`. A sampler or collation of your own delivers
                the batches, and the energy is not pooled with simpler models, which
                would not see these; otherwise they are sliced by index, which is faster.

        Returns:
            The flow, with all gradients None. `summary` then holds, beside sbi's entries
            and one for each epoch: `divergences` D1, D2 and D3 of the training batches
            (D1 and D3 with the entropy), `multipliers`, `learning_rate`; held out,
            `validation_energy_loss`, `validation_kl_flow_energy`, `validation_log_z` and
            `validation_ess`; and, unless weights are fixed, `constraint_violations`,
            `primal_value` and `duality_gap` (see `multipliers`). In nats, but for the
            multipliers, the rate and the effective sample size. And for each call,
            `linear_model_weight`, `exponential_family_weight` and
            `synthetic_likelihood_weight`: what part these have of
            `energy`, 0 to 1; and `followed_validation_loss`, that of the flow returned,
            which has followed models that were fitted to the held-out pairs, too. It may
            be too low; `best_validation_loss`, before that, is not.

        Raises:
            RuntimeError: If there are no simulations, or is no training to resume.
            ValueError: If there are too few to train and to validate on; if the network
                was trained before and no argument, or two, say how to go on; or if
                processes can't share the batches, or differ in the number of simulations.
            TypeError: If `density_estimator` can't be sampled differentiably.
            FloatingPointError: If the loss is not finite in the very first epoch.
        """
        self._check_simulations(validation_fraction)
        if resume_training and retrain_from_scratch:
            raise ValueError(
                "Expected at most one of `resume_training` and `retrain_from_scratch`."
            )
        if resume_training and self._training is None:
            raise RuntimeError(
                "There is no training to resume: call `.train()` without "
                "`resume_training` first."
            )
        if resume_training and (new := self._num_simulations() - self._num_trained_on()):
            warnings.warn(
                f"Resuming goes on with the simulations of before: {new} that were "
                "appended since have no part. `train(force_first_round_loss=True)` goes "
                "on with all.",
                stacklevel=2,
            )
        if stop_after_epochs is None:
            stop_after_epochs = _default_patience(self._num_simulations())
        self._has_kernel = calibration_kernel is not None
        with first_random_state(self._device):
            return super().train(
                num_atoms=num_atoms,
                training_batch_size=training_batch_size,
                learning_rate=learning_rate,
                validation_fraction=validation_fraction,
                stop_after_epochs=stop_after_epochs,
                max_num_epochs=max_num_epochs,
                clip_max_norm=clip_max_norm,
                calibration_kernel=calibration_kernel,
                resume_training=resume_training,
                force_first_round_loss=force_first_round_loss or retrain_from_scratch,
                discard_prior_samples=discard_prior_samples,
                use_combined_loss=use_combined_loss,
                retrain_from_scratch=retrain_from_scratch,
                show_train_summary=show_train_summary,
                dataloader_kwargs=dataloader_kwargs,
            )

    def _build_estimators(self, theta: Tensor, x: Tensor) -> ConditionalFlow:
        """Build flow and energy from training pairs on the CPU; return the flow."""
        prior = None if isinstance(self._prior, ImproperEmpirical) else self._prior
        support = support_of(prior, theta)
        net = self._density_estimator(support(theta)[0], x)
        with torch.no_grad():
            condition_on(net, x[:2]).rsample_and_log_prob(1)
        flow = ConditionalFlow(net, support)

        embedding_net = flow.embedding_net
        if self._energy_embedding_net is not None or embedding_net is None:
            embedding_net = standardizing_embedding(theta, x, self._energy_embedding_net)
        energy_net = self._energy_net
        if not isinstance(energy_net, nn.Module):
            with torch.no_grad():
                features = embedding_net.to(x.device)(x[:2]).shape[-1]
            energy_net = LogRatioEnsemble(
                energy_net(theta.shape[-1], features) for _ in range(self._num_energies)
            )
        inside = support.inside(theta).to(self._device)
        base = base_density(prior, inside, deepcopy(support).to(self._device))
        self._trained_energy = ConditionalEnergy(
            energy_net,
            base,
            support,
            theta,
            embedding_net,
            x[0].shape,
            prior,
            log_prior_floor(prior, base, inside),
        )
        return flow

    def _run_training_loop(
        self,
        train_loader: DataLoader[Any],
        val_loader: DataLoader[Any],
        train_config: TrainConfig,
        loss_args: LossArgs | None = None,
        summarization_kwargs: dict[str, Any] | None = None,
    ) -> ConditionalDensityEstimator:
        """Replace sbi's loop, which has one loss and one model, by `JeffreysTraining`."""
        assert isinstance(loss_args, LossArgsNPE)
        kernel = loss_args.calibration_kernel
        training, validation = (
            batches_from(loader, kernel, self._device, self._on_disk)
            for loader in (train_loader, val_loader)
        )
        _check_shares(training)
        if not (len(training) and len(validation)):
            raise ValueError(
                "Expected `dataloader_kwargs` that leave a batch to train and one to "
                f"validate on, got {len(training)} and {len(validation)} batches."
            )
        if self._has_kernel:
            scale_weights(training)
            scale_weights(validation)
        if not (train_config.resume_training and self._training):
            self._training = self._new_training(train_config)
        state = self._training
        first_epoch = state.epoch
        try:
            converged = state.run(
                training,
                validation,
                max_num_epochs=train_config.max_num_epochs,
                stop_after_epochs=train_config.stop_after_epochs,
                clip_max_norm=train_config.clip_max_norm,
                show_progress=self._show_progress_bars,
            )
        except FloatingPointError:  # in the first epoch: forget it, to allow another try
            self._neural_net = self._energy = self._training = None
            raise
        self.epoch, self._best_val_loss = state.epoch, state.best_loss
        weights, followed = Weights(), state.best_loss
        self._energy = state.pair.energy
        # Otherwise simulations, or their losses, are not those of earlier calls.
        if isinstance(training, SlicedBatches) and not self._has_kernel:
            self._energy, weights = self._pooled(state.pair)
            if not any(weights):  # no energy to follow, but maybe an earlier gain
                self._energy = state.pair.energy_with_own_embedding()
            stalled = state.epochs_since_best >= train_config.stop_after_epochs
            most = min(state.epoch, train_config.max_num_epochs - state.epoch)
            followed = state.follow(
                self._energy,
                training,
                validation,
                max_num_epochs=most if stalled and any(weights) else 0,
                stop_after_epochs=max(1, train_config.stop_after_epochs // 4),
                clip_max_norm=train_config.clip_max_norm,
                show_progress=self._show_progress_bars,
            )
        if not converged:
            warnings.warn(
                f"Training stopped at `max_num_epochs={train_config.max_num_epochs}`, "
                "before the held-out loss stalled. Consider increasing it.",
                stacklevel=2,
            )
        self._summary["epochs_trained"].append(state.epoch)
        self._summary["best_validation_loss"].append(self._best_val_loss)
        self._summary.setdefault("followed_validation_loss", []).append(followed)
        for model, weight in weights._asdict().items():
            self._summary.setdefault(f"{model}_weight", []).append(weight)
        for name, values in state.history.items():
            self._summary.setdefault(name, []).extend(values[first_epoch:])
        if process_rank() == 0:
            self._summarize(round_=self._round)
            self._track(state.history, first_epoch)
        if train_config.show_train_summary:
            print(self._describe_round(self._round, self._summary))
        return self._neural_net

    def _pooled(self, pair: ModelPair) -> tuple[ConditionalEnergy, Weights]:
        """Return the pooled energy, or that of the pair, if simulations have weights."""
        simulations = (
            ConcatenatedRows(self._theta_roundwise),
            ConcatenatedRows(self._x_roundwise),
        )
        try:
            return fit_pool(pair, *simulations, self.train_indices, self.val_indices)
        except (KeyboardInterrupt, RuntimeError, ValueError) as error:
            warnings.warn(
                "The energy is that of its networks alone, for it could not be pooled "
                f"with simpler models: {error!r}.",
                stacklevel=2,
            )
            return pair.energy, Weights()

    def _new_training(self, train_config: TrainConfig) -> JeffreysTraining:
        assert self._trained_energy is not None
        flow = self._neural_net.to(self._device)
        energy = self._trained_energy.to(self._device)
        multipliers: ResilientMultipliers | FixedMultipliers
        if self._weighting == "resilient":
            multipliers = ResilientMultipliers(**self._resilience, device=self._device)
        else:
            multipliers = FixedMultipliers(self._weights, device=self._device)
        learning_rate = train_config.learning_rate
        return JeffreysTraining(
            flow,
            energy,
            multipliers,
            self._options,
            learning_rate=learning_rate,
            energy_learning_rate=self._energy_learning_rate or 2 * learning_rate,
        )

    def _track(self, history: dict[str, list[Any]], first_epoch: int) -> None:
        """Log, epoch by epoch, what sbi's `_summarize` does not know of."""
        for name, values in history.items():
            by_sbi = ("training_loss", "validation_loss", "epoch_durations_sec")
            if name in by_sbi and first_epoch == 0:
                continue  # after resuming twice, sbi looks for them in the wrong place
            for epoch, value in enumerate(values[first_epoch:], first_epoch):
                if isinstance(value, list):
                    for term, part in zip(TERMS, value, strict=True):
                        self._tracker.log_metric(f"{name}/{term}", part, step=epoch)
                else:
                    self._tracker.log_metric(name, value, step=epoch)
        self._tracker.flush()

    def _check_simulations(self, validation_fraction: float) -> None:
        for theta in self._theta_roundwise:
            if theta.ndim != 2:
                raise ValueError(
                    "Expected `theta` of shape (num_simulations, D), got "
                    f"{tuple(theta.shape)}; append it to a new trainer."
                )
        for x in self._x_roundwise:
            if x.ndim < 2:
                raise ValueError(
                    "Expected `x` of shape (num_simulations, ...), (num_simulations, 1) "
                    f"for a number each, got {tuple(x.shape)}."
                )
        num = self._num_simulations()
        training = int((1 - validation_fraction) * num)
        if num and not 0 < training < num:
            raise ValueError(
                f"Expected enough simulations to train and to validate on, but {num} "
                f"with `validation_fraction={validation_fraction}` leave {training} and "
                f"{num - training}."
            )
        if not all_have(num, self._device):
            raise ValueError(
                "Expected the same simulations in all processes that train together, but "
                f"their numbers differ; this one has {num}."
            )


def register() -> None:
    """Make `sbi.inference.infer(..., method="jnpe")` find `JNPE`."""
    sbi.inference.JNPE = JNPE


def _check_shares(training: Batches) -> None:
    """Raise a ValueError unless all processes can take the same steps."""
    num = num_processes()
    if num > 1 and not (
        isinstance(training, SlicedBatches)
        and training.drop_last
        and training.batch_size % num == 0
    ):
        raise ValueError(
            f"Expected `training_batch_size` to be a multiple of the {num} processes "
            "that train together, and no `dataloader_kwargs` that deliver other batches."
        )


_NOT_REPARAMETERISED = ("mdn", "made", "mdn_snpe_a", "tabpfn")


def _flow_builder(
    density_estimator: str | FlowBuilder, embedding_net: nn.Module | None
) -> FlowBuilder:
    if not isinstance(density_estimator, str):
        if embedding_net is not None:
            raise ValueError(
                "Expected `embedding_net` only with a named `density_estimator`; give "
                "it to the builder instead."
            )
        return density_estimator
    name = density_estimator.lower()
    if name == "nsf":
        return partial(build_spline_flow, embedding_net=embedding_net)
    if name in _NOT_REPARAMETERISED or name not in model_builders:
        raise ValueError(
            "Expected `density_estimator` to be 'nsf', 'maf' or another of sbi's flows, "
            f"which can be sampled differentiably, got {density_estimator!r}."
        )
    return posterior_nn(name, embedding_net=embedding_net or nn.Identity())


def _default_patience(num_simulations: int) -> int:
    """Return `stop_after_epochs`."""
    epochs = PATIENCE // max(1, num_simulations)
    return min(MOST_PATIENCE, max(LEAST_PATIENCE, epochs))


def _check_prior(prior: Any) -> None:
    """Raise a ValueError where `prior` is a batch of distributions, as in `sbi`."""
    several = getattr(prior, "batch_shape", torch.Size())
    if several.numel() > 1:
        raise ValueError(
            "Expected `prior` to be one distribution over all D parameters, got a batch "
            f"of {several.numel()} (`batch_shape={tuple(several)}`); "
            "`torch.distributions.Independent(prior, 1)` makes one of them."
        )


def _check_options(**options: Any) -> None:
    """Raise a ValueError that names the first option outside of its range."""
    bounds, weights = options["multiplier_bounds"], options["weights"]
    rate, slack = options["energy_learning_rate"], options["slack"]
    expectations = {
        "num_energies": (
            _is_count(options["num_energies"]),
            "a whole number, at least 1",
        ),
        "num_particles": (
            _is_count(options["num_particles"]),
            "a whole number, at least 1",
        ),
        "normalizer": (options["normalizer"] in NORMALIZERS, f"one of {NORMALIZERS}"),
        "weighting": (
            options["weighting"] in ("resilient", "fixed"),
            "'resilient' or 'fixed'",
        ),
        "weights": (
            np.shape(weights) == (3,) and min(weights) >= 0 and max(weights) > 0,
            "three non-negative numbers, not all of them zero",
        ),
        "slack": (
            np.shape(slack) in ((), (3,)) and np.min(slack) >= 0,
            "a non-negative number or three",
        ),
        "relaxation_cost": (options["relaxation_cost"] > 0, "positive"),
        "multiplier_step_size": (options["multiplier_step_size"] > 0, "positive"),
        "multiplier_bounds": (
            np.shape(bounds) == (2,) and 0 <= bounds[0] < bounds[1],
            "an interval of non-negative numbers",
        ),
        "energy_learning_rate": (rate is None or rate > 0, "positive"),
    }
    for name, (fine, expected) in expectations.items():
        if not fine:
            raise ValueError(f"Expected `{name}` to be {expected}, got {options[name]}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and int(value) >= 1
