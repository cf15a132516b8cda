"""Epochs of steps, each with validation and a checkpoint, until early stopping."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, cast

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.processes import num_processes, process_rank, share_tensors
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.progress import time_left
from sbi_jeffreys.sampling.random_state import seeded
from sbi_jeffreys.training.checkpoint import Checkpoint, RandomState, copy_nested
from sbi_jeffreys.training.cuda_graph import CapturedStep
from sbi_jeffreys.training.early_stopping import EarlyStopping
from sbi_jeffreys.training.history import TERMS, History
from sbi_jeffreys.training.schedule import Cycles
from sbi_jeffreys.training.step import PrimalDualStep
from sbi_jeffreys.training.validation import held_out_means


class EpochLoop:
    """Runs the epochs of a step. `run` may be called again to continue.

    Attributes:
        step: The step, with the models in training.
        pair: The models in training.
        epoch: Number of epochs trained.
        stopping: The stopping rule, with the lowest held-out negative log-likelihood.
        best_weights: State of the averaged models after the best epoch.
        history: One list per quantity, with one entry per epoch.
        cycles: The learning rates' cycles.
        seed: Seed of the random numbers of this training.
        was_interrupted: Whether a call of `run` was interrupted (Ctrl-C).
    """

    def __init__(
        self, step: PrimalDualStep, stopping: EarlyStopping, cycles: Cycles, seed: int
    ) -> None:
        """
        Args:
            step: The step.
            stopping: The stopping rule.
            cycles: The learning rates' cycles.
            seed: Seed of the random numbers, which do not depend on those outside.
        """
        self.step, self.stopping, self.seed = step, stopping, seed
        self.cycles = cycles
        self.pair = step.pair
        self.device = step.multipliers.values.device
        self._parts: tuple[Any, ...] = (step, stopping)
        self.epoch = 0
        self.was_interrupted = False
        self.history = History()
        self.best_weights = copy_nested(self.latest.state_dict())
        self._save()

    @property
    def latest(self) -> ModelPair:
        """The averaged models of the last epoch, whether it was the best or not."""
        return cast(ModelPair, self.step.average.module)

    @property
    def best_loss(self) -> float:
        """Lowest held-out negative log-likelihood of the averaged flow, in nats."""
        return self.stopping.best_loss

    @property
    def epochs_since_best(self) -> int:
        """Number of epochs since the lowest held-out loss."""
        return self.stopping.epochs_since_best

    def run(
        self,
        training: Batches,
        validation: Batches,
        max_num_epochs: int,
        stop_after_epochs: int | None,
        clip_max_norm: float | None,
        show_progress: bool,
        description: str = "JNPE trains",
        later: float = 0.0,
    ) -> bool:
        """Train until the held-out loss stalls, then load the best averaged weights.

        Each epoch ends with a checkpoint. After an interrupt (Ctrl-C) or a loss that is
        not finite, training goes back to the last checkpoint, gives a warning and returns
        as if it had ended there. In the first epoch there is nothing to go back to, and
        the interrupt is raised. If it reaches only some of several processes, the others
        wait for ever.

        Args:
            training: Pairs to train on.
            validation: Held-out pairs.
            max_num_epochs: Most epochs, over all calls together.
            stop_after_epochs: Number of epochs without a lower held-out loss after which
                training stops. None to stop at the end of a cycle of the learning rates
                that hardly lowered it.
            clip_max_norm: Bound on the norm of each model's gradient; None for no bound.
            show_progress: Whether to show a progress bar.
            description: Label of the progress bar.
            later: Work that comes after, in epochs, for the progress bar.

        Returns:
            Whether training stopped before `max_num_epochs`, or because the loss stalled.

        Raises:
            FloatingPointError: If the loss is not finite in the first epoch.
            KeyboardInterrupt: If the first epoch is interrupted.
        """
        _keep_freed_memory()
        self.step.clip_max_norm = clip_max_norm
        self.stopping.patience = stop_after_epochs
        with (
            self._random_state_and_stream(),
            self._several_processes(),
            tqdm(
                desc=description,
                unit=" epochs",
                initial=self.epoch,
                total=self._next_end(max_num_epochs),
                disable=not show_progress or process_rank() > 0,
            ) as bar,
        ):
            self._restore()
            step: PrimalDualStep | CapturedStep = self.step
            if self.device.type == "cuda" and num_processes() == 1:
                step = CapturedStep(self.step)
            try:
                while self.epoch < max_num_epochs and not self.stopping.stalled:
                    self._run_epoch(step, training, validation)
                    self._save()
                    bar.total = self._next_end(max_num_epochs)
                    bar.update()
                    left = time_left(bar, later)
                    bar.set_postfix(left | self.history.progress(self.best_loss))
            except KeyboardInterrupt:
                self._restore()
                self.was_interrupted = True
                if self.epoch == 0:
                    raise
                warnings.warn(
                    f"{description}: interrupted after {self.epoch} epochs. The best "
                    "weights so far are kept. `train(resume_training=True)` continues "
                    "the training.",
                    stacklevel=2,
                )
            except FloatingPointError as error:
                self._restore()
                if self.epoch == 0:
                    raise
                warnings.warn(
                    f"{error} Training stopped. The best weights of the {self.epoch} "
                    "epochs before are kept.",
                    stacklevel=2,
                )
            finally:
                self.step.release()
                self.pair.eval()
        self.load_best()
        return self.stopping.stalled or self.epoch < max_num_epochs

    def load_best(self) -> None:
        """Give the models their best weights."""
        self.pair.load_state_dict(self.best_weights)

    @contextmanager
    def _random_state_and_stream(self) -> Iterator[None]:
        """Leave the generators as they were. On CUDA, work on a stream of our own."""
        with seeded(self.device, self.seed + process_rank()):
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
        self, step: PrimalDualStep | CapturedStep, training: Batches, validation: Batches
    ) -> None:
        start = time.perf_counter()
        factor = self.cycles.factor(self.epoch)
        self.step.scale_rates(factor)
        self.step.train()
        self.step.reset_statistics()
        for batch in training.shuffled(self.seed + self.epoch):
            step(*batch)
        self._check_finite(self.step.first_bad_step.tolist())
        divergences = self.step.total / self.step.count
        means = divergences.tolist()
        held_out = self._validate(validation)
        loss = held_out["validation_loss"]

        self.epoch += 1
        self.step.reference.update(loss)
        if self.stopping.update(loss):
            self.best_weights = copy_nested(self.latest.state_dict())
        if self.epoch == self.cycles.end(self.epoch - 1):
            self.stopping.end_cycle()
        multipliers = self.step.multipliers
        self.history.record(
            **multipliers.report(self.step.reference.subtract(divergences)),
            training_loss=means[0],
            epoch_durations_sec=time.perf_counter() - start,
            learning_rate=factor * self.step.rates[0],
            multipliers=multipliers.values.tolist(),
            divergences=means,
            **held_out,
        )

    def _next_end(self, max_num_epochs: int) -> int:
        """Return the number of epochs at which training may end next."""
        return min(max_num_epochs, self.cycles.end(max(0, self.epoch - 1)))

    def _check_finite(self, first_bad_step: list[float]) -> None:
        first = min(first_bad_step)
        if isfinite(first):
            steps = zip(TERMS, first_bad_step, strict=True)
            terms = [term for term, step in steps if step == first]
            raise FloatingPointError(
                f"{' and '.join(terms)} became NaN or infinite at step {int(first)} "
                f"of epoch {self.epoch + 1}."
            )

    def _validate(self, validation: Batches) -> dict[str, float]:
        """Return the held-out means of the averaged models."""
        share_tensors(list(self.pair.buffers()))  # they differ between processes
        self.step.average.copy_others()
        num_draws = self.pair.options.num_validation_particles
        means = held_out_means(self.latest, validation, num_draws)
        loss = means["validation_loss"]
        if not isfinite(loss):
            raise FloatingPointError(
                f"The held-out {TERMS[0]} became {loss} in epoch {self.epoch + 1}."
            )
        return means

    def _save(self) -> None:
        """Take a checkpoint."""
        self._checkpoint = Checkpoint(
            epoch=self.epoch,
            best_weights=self.best_weights,
            states=[copy_nested(part.state_dict()) for part in self._parts],
            random_state=RandomState.now(self.device) if self.epoch else None,
        )

    def _restore(self) -> None:
        """Go back to the last checkpoint."""
        self.epoch = self._checkpoint.epoch
        self.best_weights = self._checkpoint.best_weights
        self.history.truncate(self.epoch)
        for part, state in zip(self._parts, self._checkpoint.states, strict=True):
            part.load_state_dict(copy_nested(state))
        if self._checkpoint.random_state is not None:
            self._checkpoint.random_state.restore(self.device)


def _keep_freed_memory() -> None:
    """Let the process keep the memory that a step frees and the next step needs.

    The GNU C library returns freed memory to the system above a threshold. It sets the
    threshold to twice the size of the largest block freed so far, and counts blocks of at
    most 32 MiB. By default a step gets its memory back page by page, which takes a tenth
    of its time or more. Freeing a block just below 32 MiB raises the threshold.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
