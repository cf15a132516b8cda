"""Several rounds of simulations, each where the posterior of the round before is."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_jeffreys.options import train_config
from sbi_jeffreys.proposals.fitted import FittedProposal
from sbi_jeffreys.proposals.source import check_prior
from sbi_jeffreys.rounds.archive import Archive
from sbi_jeffreys.rounds.record import Round, Rounds
from sbi_jeffreys.rounds.simulator import Batch, SafeSimulator, Simulator, Status
from sbi_jeffreys.sampling.psis import MAX_PARETO_K
from sbi_jeffreys.sampling.random_state import random_state, seeded

DEFAULT_ROUNDS, FEWEST_IN_ROUND = 5, 50
"""Number of rounds, where each has at least this number of simulations."""

FEWEST_VALID = 10
"""Smallest number of valid simulations to train on."""

WIDENING = 1.3
"""Factor of the posterior's standard deviations in the proposal."""

MIN_KL, MIN_RELATIVE_ESS = 0.02, 0.2
"""Rounds end where the proposal changed by less than this number of nats, the effective
sample size is at least this fraction, and k̂ is at most 0.7."""

NUM_SAMPLES, NUM_DRAWS = 3_000, 2_000
"""Samples of the posterior that a proposal is fitted to, and draws that weights and KL
are estimated from."""


def run_rounds(
    trainer: Any,
    simulator: Simulator,
    x_o: Tensor | np.ndarray | Sequence[float],
    num_simulations: int = 1000,
    *,
    num_rounds: int | None = None,
    is_batched: bool = True,
    takes_numpy: bool = False,
    batch_size: int = 50,
    num_workers: int = 1,
    timeout: float | None = None,
    path: str | Path | None = None,
    seed: int = 0,
    training: Mapping[str, Any] | None = None,
    show_progress_bars: bool = True,
) -> Rounds:
    """Return the posterior for one observation from a fixed number of simulations.

    The first round simulates parameters from the prior. Each later one simulates from a
    density that is fitted to the posterior so far, and widened. All simulations train all
    models. The rounds end when the simulations are used up. They end earlier if a round
    changes the proposal by less than 0.02 nats (KL divergence), while the effective
    sample size of draws is at least a fifth of their number and k̂ at most 0.7.

    A simulation that raises, exceeds the time limit or returns NaN is counted, and its
    parameters are kept. With a `path`, every finished batch is on disk before it is used.
    A run that was killed continues where it was if it is called again. With one thread it
    simulates what it would have simulated, to the last bit.

    Args:
        trainer: A new `JNPE`, with a prior.
        simulator: Maps parameters to x, as tensors: `(batch, D)` to `(batch, *x)`.
        x_o: The observation, shape `(*x)` or `(1, *x)`, or several observations of the
            same parameters, `(n, *x)`.
        num_simulations: Simulations of all rounds together.
        num_rounds: Number of rounds, of equal sizes. By default five, or fewer so that
            each has at least 50 simulations.
        is_batched: Whether the simulator takes several parameters at a time. If not, it
            maps `(D,)` to `(*x)`.
        takes_numpy: Whether it takes arrays instead of tensors.
        batch_size: Simulations that are run, and stored, together.
        num_workers: Processes that simulate. Inside `joblib.parallel_config`, another
            backend's workers do.
        timeout: Seconds that a call of the simulator may take.
        path: A folder for the simulations, new or that of the same run.
        seed: Not negative. It determines the run.
        training: Arguments of `train`.
        show_progress_bars: Whether to show simulations and rounds, and trainings.

    Raises:
        ValueError: If the trainer has simulations or no prior, if an argument is out of
            range, if `x_o` has not the shape of the simulations, or if `path` has another
            run.
        RuntimeError: If no simulation of a round is valid, or fewer than ten in all.
    """
    arguments = dict(training or {})
    observed = torch.as_tensor(x_o, dtype=torch.float32).detach().cpu()
    numbers = {
        "num_simulations": (num_simulations, 20),
        "num_rounds": (num_rounds, 1),
        "batch_size": (batch_size, 1),
        "seed": (seed, 0),
    }
    prior = _checked(trainer, observed, numbers, num_workers, timeout, arguments)
    sizes = _sizes(num_simulations, num_rounds)
    archive = Archive(
        path,
        {
            "x_o": hashlib.sha256(observed.numpy().tobytes()).hexdigest(),
            "shape of x_o": list(observed.shape),
            "round sizes": sizes,
            "batch_size": batch_size,
            "seed": seed,
            "prior": _fingerprint(prior),
            "training": repr(
                {n: getattr(v, "__qualname__", v) for n, v in sorted(arguments.items())}
            ),
        },
    )
    safe = SafeSimulator(
        simulator, is_batched, takes_numpy, batch_size, num_workers, timeout
    )
    run = _Run(trainer, prior, safe, observed, archive, seed, arguments)
    with tqdm(
        total=sum(sizes), unit=" simulations", disable=not show_progress_bars
    ) as bar:
        return run.all_rounds(sizes, bar)


class _Run:
    """One run: what its rounds share."""

    def __init__(
        self,
        trainer: Any,
        prior: Distribution,
        simulator: SafeSimulator,
        x_o: Tensor,
        archive: Archive,
        seed: int,
        training: dict[str, Any],
    ) -> None:
        self.trainer, self.prior, self.simulator = trainer, prior, simulator
        self.x_o, self.archive, self.seed = x_o, archive, seed
        self.training = training
        self.rounds: list[Round] = []
        self.by_status: Counter[str] = Counter()

    def all_rounds(self, sizes: Sequence[int], bar: Any) -> Rounds:
        """Run the rounds."""
        proposal: Any = self.prior
        reason = "All simulations were used."
        for number, size in enumerate(sizes):
            with random_state(self.seed, 2 * number):
                theta = self._parameters(number, size, proposal)
            with random_state(self.seed, 2 * number + 1):
                bar.set_description(f"Round {number + 1}/{len(sizes)}, simulating")
                started = time.perf_counter()
                self._simulate(number, theta, proposal, bar)
                seconds = time.perf_counter() - started
                is_last = number + 1 == len(sizes)
                known = self.archive.record(number)
                following = self.archive.proposal(number + 1)
                if known is not None and following is not None:
                    self.rounds.append(Round(**known))
                    proposal = FittedProposal.from_arrays(following, self.prior, self.x_o)
                    continue
                bar.set_description(f"Round {number + 1}/{len(sizes)}, training")
                proposal = self._train(number, proposal, seconds)
            if not is_last and self._has_settled():
                reason = (
                    f"The last round changed the proposal by {self.rounds[-1].kl:.3f} "
                    f"nats, which is less than {MIN_KL}."
                )
                break
        counts = {status.name: self.by_status[status.name] for status in Status}
        with random_state(self.seed, 2 * len(sizes)):
            posterior = self._posterior()
        return Rounds(posterior, self.trainer, self.x_o, self.rounds, reason, counts)

    def _parameters(self, number: int, size: int, proposal: Any) -> np.ndarray:
        """Return the parameters of a round, as they were or drawn now, `(size, D)`."""
        stored = self.archive.proposal(number)
        if stored is None:
            theta = proposal.sample(torch.Size((size,))).reshape(size, -1)
            stored = {"theta": theta.cpu().numpy().astype(np.float32)}
            if number:
                stored |= proposal.arrays()
            self.archive.add_proposal(number, stored)
        return stored["theta"]

    def _simulate(self, number: int, theta: np.ndarray, proposal: Any, bar: Any) -> None:
        """Simulate what is not known of a round, and give all to the trainer."""
        done = self.archive.batches(number)
        bar.update(sum(len(batch.theta) for batch in done.values()))
        for batch in self.simulator.batches(theta, self.seed, number, set(done)):
            self.archive.add_batch(number, batch)
            if number == 0 and batch.x.size and len(done) == 1:
                _shaped(self.x_o, batch.x.shape[1:])
            bar.update(len(batch.theta))
        sized = [batch.x.shape[1:] for batch in done.values() if batch.x.size]
        shape = sized[0] if sized else (0,)
        if number == 0 and sized:
            self.x_o = _shaped(self.x_o, shape)
        elif sized:
            shape = self.x_o.shape[1:]
        batches = [_of_shape(done[which], shape) for which in sorted(done)]
        for batch in batches:
            self.by_status.update(Status(s).name for s in batch.status)
        valid = sum(int((batch.status == Status.VALID).sum()) for batch in batches)
        if valid == 0 or self.by_status[Status.VALID.name] < FEWEST_VALID:
            error = next((b.error for b in batches if b.error), "x is not finite")
            raise RuntimeError(
                f"Too few simulations of round {number + 1} are valid, {valid} of "
                f"{len(theta)}. The first error: {error}."
            )
        all_theta = torch.from_numpy(np.concatenate([b.theta for b in batches]))
        all_x = torch.from_numpy(np.concatenate([batch.x for batch in batches]))
        self.trainer.append_simulations(all_theta, all_x, proposal)
        self.trainer.hold_out(self.training.get("validation_fraction", 0.1))

    def _train(self, number: int, proposal: Any, seconds: float) -> FittedProposal:
        """Train on all simulations so far, record the round, return the next proposal."""
        started = time.perf_counter()
        self.trainer.train(**self.training)
        posterior = self._posterior()
        samples = posterior.sample((NUM_SAMPLES,), show_progress_bars=False)
        fitted = FittedProposal.fit(samples, self.prior, WIDENING, self.x_o)
        drawn = fitted.sample((NUM_DRAWS,))
        kl = fitted.log_prob(drawn) - proposal.log_prob(drawn).reshape(-1)
        weights = posterior.importance_weights(
            num_samples=NUM_DRAWS, x_is_iid=len(self.x_o) > 1
        )
        last = self.archive.batches(number).values()
        invalid = Counter(Status(s).name for batch in last for s in batch.status)
        invalid.pop(Status.VALID.name, None)
        self.rounds.append(
            Round(
                number=number + 1,
                num_simulations=sum(self.by_status.values()),
                num_invalid=dict(invalid),
                kl=float(kl.mean()),
                relative_ess=float(weights.ess) / len(weights.theta),
                pareto_k=float(weights.pareto_k),
                log_z=float(weights.log_z),
                mean=samples.mean(0).tolist(),
                std=samples.std(0).tolist(),
                simulation_seconds=seconds,
                training_seconds=time.perf_counter() - started,
            )
        )
        self.archive.add_record(number, asdict(self.rounds[-1]))
        return fitted

    def _posterior(self) -> Any:
        posterior = self.trainer.build_posterior(sample_with="energy")
        return posterior.set_default_x(self.x_o)

    def _has_settled(self) -> bool:
        last = self.rounds[-1]
        return (
            last.kl < MIN_KL
            and last.relative_ess >= MIN_RELATIVE_ESS
            and last.pareto_k <= MAX_PARETO_K
        )


def _checked(
    trainer: Any,
    x_o: Tensor,
    numbers: Mapping[str, tuple[Any, int]],
    num_workers: int,
    timeout: float | None,
    training: Mapping[str, Any],
) -> Distribution:
    """Return the prior, or raise a ValueError that names an argument."""
    if trainer.has_simulations:
        raise ValueError("Expected a new `trainer`, got one that has simulations.")
    prior = trainer.proper_prior
    if prior is None:
        raise ValueError("Expected a `trainer` with a prior, got one without.")
    check_prior(prior)
    if not bool(x_o.isfinite().all()):
        raise ValueError("Expected a finite `x_o`, but it has NaN or infinite entries.")
    for name, (value, least) in numbers.items():
        if value is not None and not (
            isinstance(value, int | np.integer) and value >= least
        ):
            raise ValueError(
                f"Expected `{name}` to be a whole number, at least {least}, got {value}."
            )
    if num_workers == 0:
        raise ValueError("Expected `num_workers` to be positive, or -1, got 0.")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"Expected `timeout` to be positive, got {timeout}.")
    try:
        given = signature(trainer.train).bind(**training)
    except TypeError as error:
        raise ValueError(
            f"Expected `training` to have arguments of `train`: {error}."
        ) from error
    given.apply_defaults()
    train_config(**given.arguments)
    return prior


def _sizes(num_simulations: int, num_rounds: int | None) -> list[int]:
    """Return the sizes of the rounds, which differ by one at most."""
    num = num_rounds or min(DEFAULT_ROUNDS, max(1, num_simulations // FEWEST_IN_ROUND))
    if num > num_simulations // 20:
        raise ValueError(
            "Expected `num_rounds` that leave at least 20 simulations for each, got "
            f"{num} rounds of {num_simulations} simulations."
        )
    return [len(part) for part in np.array_split(np.empty(num_simulations), num)]


def _fingerprint(prior: Distribution) -> str:
    """Return what is different for another prior."""
    with seeded(torch.device("cpu"), 0):
        drawn = prior.sample(torch.Size((100,))).cpu().numpy()
    return hashlib.sha256(drawn.tobytes()).hexdigest()


def _shaped(x_o: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return observations, shape `(n, *shape)`, or raise a ValueError."""
    if x_o.shape == shape or (x_o.shape[1:] == shape and x_o.ndim == len(shape) + 1):
        return x_o.reshape(-1, *shape)
    raise ValueError(
        f"Expected `x_o` of the shape of a simulation, {shape}, or of several, got "
        f"{tuple(x_o.shape)}."
    )


def _of_shape(batch: Batch, shape: tuple[int, ...]) -> Batch:
    """Return a batch whose x has this shape; if it has not, all of it is NaN."""
    if batch.x.shape[1:] == shape:
        return batch
    x = np.full((len(batch.x), *shape), np.nan, dtype=np.float32)
    wrong = np.where(batch.status == Status.VALID, Status.RAISED, batch.status)
    error = batch.error or f"x of shape {batch.x.shape[1:]}, where others have {shape}"
    return batch._replace(x=x, status=wrong, error=error)
