"""The training loop: primal-dual steps, validation, early stopping, resuming."""

import time
import warnings
from dataclasses import dataclass
from math import isfinite
from typing import Any, cast

import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from sbi_jeffreys.batches import Batches
from sbi_jeffreys.multipliers import (
    EntropyReference,
    FixedMultipliers,
    ResilientMultipliers,
)
from sbi_jeffreys.objective import Normalizer, agreement, jeffreys_divergences

TERMS = ("KL(data|flow)", "KL(flow|energy)", "KL(data|energy)")


@dataclass(frozen=True)
class TrainingOptions:
    """What does not change while a pair of models is trained.

    Attributes:
        num_particles: Draws K from the flow for each x of a batch.
        normalizer: Estimate of log Z, see `objective.log_normalizer`.
        averaging: Weight of the past in the moving average of the weights, per step.
        decay: Factor by which learning rates fall when validation stalls.
        num_validation_particles: Draws for each held-out x.
    """

    num_particles: int = 4
    normalizer: Normalizer = "generalized"
    averaging: float = 0.99
    decay: float = 0.5
    num_validation_particles: int = 16


class ModelPair(nn.Module):
    """The flow and the energy, which may share an embedding network."""

    def __init__(self, flow: ConditionalDensityEstimator, energy: nn.Module) -> None:
        super().__init__()
        self.flow = flow
        self.energy = energy

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the flow's parameters, and those that are the energy's alone."""
        flow = list(self.flow.parameters())
        shared = set(map(id, flow))
        return flow, [p for p in self.energy.parameters() if id(p) not in shared]


class JeffreysTraining:
    """Trains a pair; what it holds between calls of `run` is all that it continues from.

    Attributes:
        epoch: Number of epochs trained.
        history: One list per quantity, one entry per epoch.
        best_loss: Lowest held-out negative log-likelihood of the averaged flow, in nats.
    """

    def __init__(
        self,
        flow: ConditionalDensityEstimator,
        energy: nn.Module,
        multipliers: ResilientMultipliers | FixedMultipliers,
        options: TrainingOptions,
        learning_rate: float,
        energy_learning_rate: float,
        patience: int,
    ) -> None:
        """
        Args:
            flow: p(θ|x), trained in place.
            energy: f(θ, x), trained in place.
            multipliers: Weights of the three divergences.
            options: See `TrainingOptions`.
            learning_rate: Of Adam, for the flow.
            energy_learning_rate: Likewise for the energy.
            patience: Epochs without improvement after which learning rates fall.
        """
        self.pair = ModelPair(flow, energy)
        self.multipliers = multipliers
        self.options = options
        self.groups = self.pair.parameter_groups()
        self.optimizer = Adam(
            [
                {"params": self.groups[0], "lr": learning_rate},
                {"params": self.groups[1], "lr": energy_learning_rate},
            ],
            fused=all(p.is_floating_point() for p in self.pair.parameters()),
        )
        self.scheduler = ReduceLROnPlateau(
            self.optimizer,
            factor=options.decay,
            patience=patience,
            threshold=0.0,
            threshold_mode="abs",
        )
        self.averaged = AveragedModel(self.pair, multi_avg_fn=self._move_average)
        self.reference = EntropyReference()
        self.epoch = 0
        self.epochs_since_best = 0
        self.best_loss = float("inf")
        self.history: dict[str, list[Any]] = {}
        self._best_weights = _copy(self.averaged.module.state_dict())
        self._seed = int(torch.randint(2**31, ()))
        self._checkpoint = self._state()

    @property
    def latest(self) -> ModelPair:
        """The averaged models of the last epoch, best or not."""
        return cast(ModelPair, self.averaged.module).eval()

    def run(
        self,
        training: Batches,
        validation: Batches,
        max_num_epochs: int,
        stop_after_epochs: int,
        clip_max_norm: float | None,
        show_progress: bool,
    ) -> bool:
        """Train until validation stalls; leave the best averaged weights in the pair.

        Each epoch ends in a checkpoint. An interrupt (Ctrl-C) falls back to the last one
        and returns as if training had ended there; so does a divergence, with a warning.

        Args:
            training: Pairs to train on.
            validation: Held-out pairs.
            max_num_epochs: Stop when this many epochs were trained, in all calls.
            stop_after_epochs: Stop after this many epochs without a better held-out NLL.
            clip_max_norm: Bound on the norm of each model's gradient, or None.
            show_progress: Whether to show a progress bar.

        Returns:
            Whether training ended by itself, rather than at `max_num_epochs`.

        Raises:
            FloatingPointError: If the first epoch diverges, when nothing can be kept.
        """
        cuda = [p.device for p in self.groups[0][:1] if p.is_cuda]
        with (
            torch.random.fork_rng(cuda),
            tqdm(
                desc="Training JNPE",
                unit=" epochs",
                initial=self.epoch,
                disable=not show_progress,
            ) as bar,
        ):
            torch.default_generator.manual_seed(self._seed)
            for device in cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self._seed)
            self._restore(self._checkpoint)
            try:
                while (
                    self.epoch < max_num_epochs
                    and self.epochs_since_best < stop_after_epochs
                ):
                    self._run_epoch(training, validation, clip_max_norm)
                    self._checkpoint = self._state()
                    bar.update()
                    bar.set_postfix(self._progress())
            except KeyboardInterrupt:
                self._restore(self._checkpoint)
                warnings.warn(
                    f"Training was interrupted; the best weights of {self.epoch} epochs "
                    "are kept. `train(resume_training=True)` continues from there.",
                    stacklevel=2,
                )
            except FloatingPointError as error:
                self._restore(self._checkpoint)
                if self.epoch == 0:
                    raise
                warnings.warn(
                    f"{error} Training stopped; the best weights of the "
                    f"{self.epoch} epochs before are kept.",
                    stacklevel=2,
                )
        self.pair.load_state_dict(self._best_weights)
        self.pair.zero_grad(set_to_none=True)
        self.pair.eval()
        return self.epoch < max_num_epochs

    def _run_epoch(
        self, training: Batches, validation: Batches, clip_max_norm: float | None
    ) -> None:
        start = time.perf_counter()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.pair.train()
        total = torch.zeros(3, device=self.multipliers.values.device)
        onset = torch.full_like(total, len(training))  # step at which a term diverges
        for step, batch in enumerate(training.shuffled()):
            divergences = self._step(*batch, clip_max_norm)
            total += divergences
            onset = onset.clamp(max=torch.where(divergences.isfinite(), onset, step))
        self._check_finite(onset.tolist(), len(training))
        means = (total / len(training)).tolist()
        held_out = self._validate(validation)
        loss = held_out["validation_loss"]
        if not isfinite(loss):
            raise FloatingPointError(
                f"The held-out {TERMS[0]} became {loss} in epoch {self.epoch + 1}."
            )

        self.epoch += 1
        self.reference.update(loss)
        self.scheduler.step(loss)
        self.epochs_since_best += 1
        if loss < self.best_loss:
            self.best_loss = loss
            self.epochs_since_best = 0
            self._best_weights = _copy(self.averaged.module.state_dict())
        self._record(
            training_loss=means[0],
            epoch_durations_sec=time.perf_counter() - start,
            learning_rate=learning_rate,
            multipliers=self.multipliers.values.tolist(),
            divergences=means,
            **held_out,
        )

    def _check_finite(self, onset: list[float], num_steps: int) -> None:
        first = min(onset)
        if first < num_steps:
            terms = [t for t, o in zip(TERMS, onset, strict=True) if o == first]
            raise FloatingPointError(
                f"{' and '.join(terms)} became NaN or infinite at step {int(first) + 1} "
                f"of epoch {self.epoch + 1}."
            )

    def _step(
        self, theta: Tensor, x: Tensor, weights: Tensor, clip_max_norm: float | None
    ) -> Tensor:
        """Descend the Lagrangian, ascend the multipliers; return the divergences."""
        divergences = jeffreys_divergences(
            self.pair.flow,
            self.pair.energy,
            theta,
            x,
            self.options.num_particles,
            self.options.normalizer,
        ).mean(weights)
        self.optimizer.zero_grad()
        (self.multipliers.values * divergences).sum().backward()
        if clip_max_norm is not None:
            for parameters in self.groups:
                clip_grad_norm_(parameters, clip_max_norm)
        self.optimizer.step()
        self.averaged.update_parameters(self.pair)

        divergences = divergences.detach()
        if self.reference.known:
            self.multipliers.update(self.reference.subtract(divergences))
        return divergences

    @torch.no_grad()
    def _validate(self, validation: Batches) -> dict[str, float]:
        """Return held-out means, in nats, of the averaged models."""
        pair = self.latest
        rows = []
        for theta, x, weights in validation.ordered():
            theta = theta.unsqueeze(0)
            nll = -pair.flow.log_prob(theta, x)[0]
            draws, log_p = pair.flow.sample_and_log_prob(
                (self.options.num_validation_particles,), x
            )
            flow_to_energy, log_z, ess = agreement(log_p, pair.energy(draws, x))
            energy_nll = log_z - pair.energy(theta, x)[0]
            rows.append(
                torch.stack(
                    [weights * nll, weights * energy_nll, flow_to_energy, log_z, ess]
                )
            )
        names = (
            "validation_loss",
            "validation_energy_loss",
            "validation_flow_to_energy",
            "validation_log_z",
            "validation_ess",
        )
        means = torch.cat(rows, -1).mean(-1).tolist()
        return dict(zip(names, means, strict=True))

    def _move_average(self, averages: Any, weights: Any, num_averaged: Any) -> None:
        """Move exponential averages; early on, they forget the start faster."""
        n = int(num_averaged)
        past = min(self.options.averaging, (1 + n) / (10 + n))
        torch._foreach_lerp_(averages, weights, 1 - past)

    def _record(self, **values: Any) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)

    def _progress(self) -> dict[str, str]:
        last = {name: values[-1] for name, values in self.history.items()}
        return {
            "nll": f"{last['validation_loss']:.3f}",
            "best": f"{self.best_loss:.3f}",
            "energy nll": f"{last['validation_energy_loss']:.3f}",
            "KL(flow|energy)": f"{last['validation_flow_to_energy']:.2f}",
            "ESS": f"{last['validation_ess']:.2f}",
            "λ": "/".join(f"{value:.2f}" for value in last["multipliers"]),
        }

    def _state(self) -> dict[str, Any]:
        """Return a copy of everything that training continues from."""
        parameter = self.groups[0][0]
        return {
            "pair": _copy(self.pair.state_dict()),
            "averaged": _copy(self.averaged.state_dict()),
            "optimizer": _copy(self.optimizer.state_dict()),
            "scheduler": _copy(self.scheduler.state_dict()),
            "multipliers": self.multipliers.values.clone(),
            "reference": self.reference.value,
            "epoch": self.epoch,
            "epochs_since_best": self.epochs_since_best,
            "best_loss": self.best_loss,
            "best_weights": self._best_weights,
            "history": {name: list(values) for name, values in self.history.items()},
            "rng": torch.get_rng_state() if self.epoch else None,
            "cuda_rng": torch.cuda.get_rng_state(parameter.device)
            if self.epoch and parameter.is_cuda
            else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; the random number generators too, but before epoch 1."""
        self.pair.load_state_dict(state["pair"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(_copy(state["optimizer"]))
        self.scheduler.load_state_dict(_copy(state["scheduler"]))
        self.multipliers.values = state["multipliers"].clone()
        self.reference.value = state["reference"]
        self.epoch = state["epoch"]
        self.epochs_since_best = state["epochs_since_best"]
        self.best_loss = state["best_loss"]
        self._best_weights = state["best_weights"]
        self.history = {name: list(values) for name, values in state["history"].items()}
        if state["rng"] is not None:
            torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.groups[0][0].device)


def _copy(state: Any) -> Any:
    """Copy nested dicts and lists of tensors, at a fraction of `deepcopy`'s cost."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copy(value) for value in state]
    return state
