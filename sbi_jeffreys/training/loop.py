"""The training loop: primal-dual steps, validation, early stopping, resuming."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.processes import (
    mean_over_processes,
    num_processes,
    process_rank,
    share_tensors,
)
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.objective.divergences import agreement
from sbi_jeffreys.objective.multipliers import FixedMultipliers, ResilientMultipliers
from sbi_jeffreys.sampling.random_state import seeded
from sbi_jeffreys.training.cuda_graph import CapturedStep
from sbi_jeffreys.training.step import PrimalDualStep, TrainedPair, TrainingOptions

TERMS = ("KL(data|flow)", "KL(flow|energy)", "KL(data|energy)")

HELD_OUT = (
    "validation_loss",
    "validation_energy_loss",
    "validation_kl_flow_energy",
    "validation_log_z",
    "validation_ess",
)


class JeffreysTraining:
    """Trains a pair; what it holds between calls of `run` is all that it continues from.

    Attributes:
        epoch: Number of epochs trained.
        history: One list per quantity, one entry per epoch.
        best_loss: Lowest held-out negative log-likelihood of the averaged flow, in nats.
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
            learning_rate: Of Adam, for the flow.
            energy_learning_rate: Likewise for the energy; one of 0 leaves it as it is, in
                evaluation mode.
        """
        self.pair = TrainedPair(flow, energy, options)
        share_tensors([t.data for t in self.pair.state_dict().values()])
        self.device = multipliers.values.device
        self._trains_energy = energy_learning_rate > 0
        self.step = PrimalDualStep(
            self.pair, multipliers, learning_rate, energy_learning_rate
        )
        self.scheduler = ReduceLROnPlateau(
            self.step.optimizer,
            factor=options.decay,
            threshold=0.0,
            threshold_mode="abs",
        )
        self.learning_rate = learning_rate
        self.epoch = 0
        self.epochs_since_best = 0
        self.best_loss = float("inf")
        self.history: dict[str, list[Any]] = {}
        self._best_weights = _copy(self.latest.state_dict())
        self._followed: tuple[float, dict[str, Tensor]] = (float("inf"), {})
        self._seed = int(torch.randint(2**31, ()))
        self._checkpoint = self._state()

    @property
    def latest(self) -> ModelPair:
        """The averaged models of the last epoch, best or not."""
        return cast(ModelPair, self.step.average.module)

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
        """Train the flow by its reverse KL to an energy alone, which stays as it is.

        The learning rate is half of that of the start.

        Only weights that lower the flow's held-out loss are kept, of this call or of an
        earlier one. What training continues from does not change: `run` goes on as if
        this had not been called.

        Args:
            energy: Another than that of the pair; its log-ratio network may be the same.
            training: Pairs of which x is used.
            validation: Held-out pairs.
            max_num_epochs: As in `run`, of this call; 0 to look at earlier calls alone.
            stop_after_epochs: As in `run`.
            clip_max_norm: As in `run`.
            show_progress: As in `run`.

        Returns:
            The flow's held-out negative log-likelihood, in nats.
        """
        loss, weights = self._followed
        if loss < self.best_loss:
            self.pair.flow.load_state_dict(weights)
        follower = JeffreysTraining(
            self.pair.flow,
            energy,
            FixedMultipliers((0.0, 1.0, 0.0), self.device),
            self.pair.options,
            self.learning_rate / 2,
            energy_learning_rate=0.0,
        )
        follower._seed, follower.best_loss = self._seed, min(loss, self.best_loss)
        follower._checkpoint = follower._state()
        try:
            follower.run(
                training,
                validation,
                max_num_epochs,
                stop_after_epochs,
                clip_max_norm,
                show_progress and max_num_epochs > 0,
                "Flow follows energy",
            )
        except FloatingPointError as error:
            warnings.warn(f"{error} The flow stays as it was.", stacklevel=2)
        self._followed = follower.best_loss, _copy(self.pair.flow.state_dict())
        return follower.best_loss

    def run(
        self,
        training: Batches,
        validation: Batches,
        max_num_epochs: int,
        stop_after_epochs: int,
        clip_max_norm: float | None,
        show_progress: bool,
        description: str = "Training JNPE",
    ) -> bool:
        """Train until validation stalls; leave the best averaged weights in the pair.

        Each epoch ends in a checkpoint. An interrupt (Ctrl-C) falls back to the last one
        and returns as if training had ended there; so does a divergence, with a warning.
        (An interrupt that reaches only some of several processes leaves them waiting.)

        Args:
            training: Pairs to train on.
            validation: Held-out pairs.
            max_num_epochs: Stop when this many epochs were trained, in all calls.
            stop_after_epochs: Stop after this many epochs without a better held-out NLL;
                learning rates fall after half as many.
            clip_max_norm: Bound on the norm of each model's gradient, or None.
            show_progress: Whether to show a progress bar.
            description: Of what the bar shows.

        Returns:
            Whether training ended by itself, rather than at `max_num_epochs`.

        Raises:
            FloatingPointError: If the first epoch diverges, when nothing can be kept.
        """
        _keep_freed_memory()
        self.step.clip_max_norm = clip_max_norm
        with (
            self._random_state_and_stream(),
            self._several_processes(),
            tqdm(
                desc=description,
                unit=" epochs",
                initial=self.epoch,
                disable=not show_progress or process_rank() > 0,
            ) as bar,
        ):
            self._restore(self._checkpoint)
            self.scheduler.patience = stop_after_epochs // 2
            step: PrimalDualStep | CapturedStep = self.step
            if self.device.type == "cuda" and num_processes() == 1:
                step = CapturedStep(self.step)
            try:
                while (
                    self.epoch < max_num_epochs
                    and self.epochs_since_best < stop_after_epochs
                ):
                    self._run_epoch(step, training, validation)
                    self._checkpoint = self._state()
                    bar.update()
                    bar.set_postfix(self._progress())
            except KeyboardInterrupt:
                self._restore(self._checkpoint)
                warnings.warn(
                    f"{description}: interrupted after {self.epoch} epochs, of which the "
                    "best weights are kept. `train(resume_training=True)` goes on with "
                    "the training.",
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
            finally:
                self.pair.zero_grad(set_to_none=True)
                self.pair.eval()
        self.pair.load_state_dict(self._best_weights)
        return self.epochs_since_best >= stop_after_epochs or self.epoch < max_num_epochs

    @contextmanager
    def _random_state_and_stream(self) -> Iterator[None]:
        """Leave the generators as they were; on CUDA, work on a stream of our own."""
        with seeded(self.device, self._seed + process_rank()):
            if self.device.type != "cuda":
                yield
                return
            with torch.cuda.device(self.device):
                outer, inner = torch.cuda.current_stream(), torch.cuda.Stream()
                inner.wait_stream(outer)
                with torch.cuda.stream(inner):
                    yield
                outer.wait_stream(inner)

    @contextmanager
    def _several_processes(self) -> Iterator[None]:
        """With several processes, average gradients over them."""
        if num_processes() > 1:
            self.step.model = DistributedDataParallel(self.pair)
        try:
            yield
        finally:
            self.step.model = self.pair

    def _run_epoch(
        self,
        step: PrimalDualStep | CapturedStep,
        training: Batches,
        validation: Batches,
    ) -> None:
        start = time.perf_counter()
        learning_rates = self._learning_rates()
        self.pair.energy.train(self._trains_energy)
        self.pair.flow.train()
        self.step.reset_statistics()
        for batch in training.shuffled(self._seed + self.epoch):
            step(*batch)
        self._check_finite(self.step.onset.tolist())
        divergences = self.step.total / self.step.count
        means = divergences.tolist()
        held_out = self._validate(validation)
        loss = held_out["validation_loss"]
        if not isfinite(loss):
            raise FloatingPointError(
                f"The held-out {TERMS[0]} became {loss} in epoch {self.epoch + 1}."
            )

        self.epoch += 1
        self.step.reference.update(loss)
        self.scheduler.step(loss)
        if isinstance(step, CapturedStep) and self._learning_rates() != learning_rates:
            step.forget()
        self.epochs_since_best += 1
        if loss < self.best_loss:
            self.best_loss = loss
            self.epochs_since_best = 0
            self._best_weights = _copy(self.latest.state_dict())
        if isinstance(self.step.multipliers, ResilientMultipliers):
            reference = self.step.reference
            duality = self.step.multipliers.duality(reference.subtract(divergences))
            self._record(
                constraint_violations=duality.violations.tolist(),
                primal_value=float(duality.primal_value),
                duality_gap=float(duality.gap),
            )
        self._record(
            training_loss=means[0],
            epoch_durations_sec=time.perf_counter() - start,
            learning_rate=learning_rates[0],
            multipliers=self.step.multipliers.values.tolist(),
            divergences=means,
            **held_out,
        )

    def _learning_rates(self) -> list[float]:
        return [group["lr"] for group in self.step.optimizer.param_groups]

    def _check_finite(self, onset: list[float]) -> None:
        first = min(onset)
        if isfinite(first):
            terms = [t for t, o in zip(TERMS, onset, strict=True) if o == first]
            raise FloatingPointError(
                f"{' and '.join(terms)} became NaN or infinite at step {int(first)} "
                f"of epoch {self.epoch + 1}."
            )

    @torch.no_grad()
    def _validate(self, validation: Batches) -> dict[str, float]:
        """Return held-out means, in nats, of the averaged models."""
        share_tensors(list(self.pair.buffers()))  # each process has its own since a step
        self.step.average.copy_buffers()
        sums = self.step.groups[0][0].new_zeros(len(HELD_OUT) + 1)
        for theta, x, weights in validation.ordered():
            flow, energy = self.latest.given(x)
            num_particles = self.pair.options.num_validation_particles
            draws, log_p = flow.rsample_and_log_prob(num_particles)
            kl_flow_energy, log_z, ess = agreement(log_p, energy(draws))
            nll = -flow.log_prob(theta.unsqueeze(0))[0]
            energy_nll = log_z - energy(theta.unsqueeze(0))[0]
            columns = [weights * nll, weights * energy_nll, kl_flow_energy, log_z, ess]
            sums += torch.stack([*columns, torch.ones_like(nll)]).sum(-1)
        *means, num_pairs = mean_over_processes(sums).tolist()
        means = [mean / num_pairs for mean in means]
        return dict(zip(HELD_OUT, means, strict=True))

    def _record(self, **values: Any) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)

    def _progress(self) -> dict[str, str]:
        last = {name: values[-1] for name, values in self.history.items()}
        return {
            "nll": f"{last['validation_loss']:.3f}",
            "best": f"{self.best_loss:.3f}",
            "energy nll": f"{last['validation_energy_loss']:.3f}",
            "KL(flow|energy)": f"{last['validation_kl_flow_energy']:.2f}",
            "ESS": f"{last['validation_ess']:.2f}",
            "λ": "/".join(f"{value:.2f}" for value in last["multipliers"]),
        }

    def _state(self) -> dict[str, Any]:
        """Return a copy of everything that training continues from."""
        on_cuda = self.device.type == "cuda"
        return {
            "step": _copy(self.step.state_dict()),
            "scheduler": _copy(self.scheduler.state_dict()),
            "epoch": self.epoch,
            "epochs_since_best": self.epochs_since_best,
            "best_loss": self.best_loss,
            "best_weights": self._best_weights,
            "history": {name: list(values) for name, values in self.history.items()},
            "rng": torch.get_rng_state() if self.epoch else None,
            "cuda_rng": torch.cuda.get_rng_state(self.device)
            if self.epoch and on_cuda
            else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; the random number generators too, but before epoch 1."""
        self.step.load_state_dict(_copy(state["step"]))
        self.scheduler.load_state_dict(_copy(state["scheduler"]))
        self.epoch = state["epoch"]
        self.epochs_since_best = state["epochs_since_best"]
        self.best_loss = state["best_loss"]
        self._best_weights = state["best_weights"]
        self.history = {name: list(values) for name, values in state["history"].items()}
        if state["rng"] is not None:
            torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


def _keep_freed_memory() -> None:
    """Let the process keep the memory that a step frees and the next one needs.

    The GNU C library returns freed memory to the system above a threshold, which it sets
    to twice the largest block freed so far (at most 32 MiB count). By default a step gets
    its memory back page by page, for a tenth of its time or more.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _copy(state: Any) -> Any:
    """Copy nested dicts and lists of tensors, at a fraction of `deepcopy`'s cost."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copy(value) for value in state]
    return state
