"""The flow as a posterior: no sample is outside the prior, and few draws are rejected."""

from typing import Any

import torch
from sbi.inference.posteriors import DirectPosterior
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import device_of, x_or_default
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow, Shape
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors.interface import (
    TrustedPosterior,
    check_batch,
    move,
    observations,
    rows_like,
    shape_of,
)
from sbi_jeffreys.posteriors.potential import FlowPotential, away_from_bounds
from sbi_jeffreys.posteriors.trust import TrustCheck
from sbi_jeffreys.sampling.blocks import blocks, check_block_size, progress_bar
from sbi_jeffreys.sampling.rejection import Rejection


class FlowPosterior(TrustedPosterior, DirectPosterior):
    """`sbi`'s `DirectPosterior` of a flow.

    No sample is outside the prior, and the density is zero there. Draws outside are
    rejected, unless the flow is known to stay inside; `leakage_correction` returns the
    share that is accepted. At most `max_sampling_batch_size` samples are drawn at a time,
    over all observations together. `agreement` compares the flow with the energy that was
    trained beside it. The rest is as in `sbi`.

    On the bounds of an interval the flow has no density, and close to them there are
    hardly any simulations. So within a thousandth of the interval from a bound, densities
    are those at the thousandth. This does not hold for the densities of
    `posterior_estimator` itself.
    """

    def __init__(
        self,
        posterior_estimator: ConditionalFlow,
        prior: Distribution,
        max_sampling_batch_size: int = 10_000,
        device: torch.device | str | None = None,
        enable_transform: bool = True,
        energy: ConditionalEnergy | None = None,
        novelty: Novelty | None = None,
        num_simulations: int | None = None,
        is_amortised: bool = True,
        show_progress_bars: bool = True,
    ) -> None:
        """
        Args:
            posterior_estimator: The flow.
            prior: All samples are inside its support.
            max_sampling_batch_size: Most samples drawn at a time, for all x together.
            device: Where to sample; by default where the flow is.
            enable_transform: Whether `map` ascends in unconstrained space.
            energy: The energy that was trained with the flow, for `agreement`.
            novelty: Compares observations with the simulations, for `agreement`.
            num_simulations: Number of simulations that the models were trained on. It
                is only recorded.
            is_amortised: Whether it is meant for all x, and not just near the observation
                of several rounds.
            show_progress_bars: Whether to show progress where a call does not say it.
        """
        self.show_progress_bars = show_progress_bars
        self.is_amortised = is_amortised
        pair = None if energy is None else ModelPair(posterior_estimator, energy)
        self._trust = TrustCheck(pair, prior, novelty)
        self.num_simulations = num_simulations
        self._set_up(
            posterior_estimator,
            prior,
            max_sampling_batch_size=max_sampling_batch_size,
            device=device,
            enable_transform=enable_transform,
        )

    def _set_up(
        self, estimator: ConditionalFlow, prior: Distribution, **options: Any
    ) -> None:
        """Set up a `DirectPosterior`, with a potential of our own."""
        DirectPosterior.__init__(self, estimator, prior, **options)
        self.potential_fn = FlowPotential(
            self.posterior_estimator, self.prior, device=device_of(self)
        )
        self._never_leaves = self.posterior_estimator.never_leaves(self.prior)
        self._rejection = Rejection(self.posterior_estimator.sample, self.prior)

    def __str__(self) -> str:
        return f"Posterior p(θ|x) of type {type(self).__name__}: samples of the flow."

    @property
    def pair(self) -> ModelPair | None:
        """Flow and energy, or None if there is no energy."""
        return self._trust.pair

    def to(self, device: torch.device | str) -> None:
        """Move the models, the prior, the simulations and the default x to a device."""

        def set_up(device: torch.device | str) -> None:
            self._set_up(
                self.posterior_estimator.to(device),
                self._trust.prior,
                max_sampling_batch_size=self.max_sampling_batch_size,
                device=device,
                enable_transform=self.enable_transform,
            )

        move(self, self._trust, device, set_up)

    def log_prob(
        self, theta: Tensor, x: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return log densities in nats, shape `(N,)`; further arguments are `sbi`'s.

        Args:
            theta: Parameters, shape `(N, D)`.
            x: One observation; by default that of `set_default_x`.

        Raises:
            ValueError: If there are several observations, or none, or if `theta` has
                not D columns.
        """
        conditions = self._one_condition(x, "log_prob_batched")
        theta = rows_like(theta, self.posterior_estimator.support.low)
        theta = away_from_bounds(self.posterior_estimator, self.prior, theta)
        return super().log_prob(theta, conditions, *args, **kwargs)

    def log_prob_batched(
        self, theta: Tensor, x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return log densities in nats, shape `(*sample_shape, batch)`.

        Further arguments are `sbi`'s.

        Args:
            theta: Parameters, shape `(*sample_shape, batch, D)`.
            x: Observations, shape `(batch, *condition_shape)`.

        Raises:
            ValueError: If the batches differ, or if `theta` has not D columns.
        """
        conditions = self._conditions(x)
        theta = away_from_bounds(self.posterior_estimator, self.prior, theta)
        check_batch(theta, len(conditions))
        rows = theta.reshape(-1, *theta.shape[-2:])
        log_prob = super().log_prob_batched(rows, conditions, *args, **kwargs)
        return log_prob.reshape(theta.shape[:-1])

    def sample(
        self,
        sample_shape: Shape = (),
        x: Tensor | None = None,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool | None = None,
        reject_outside_prior: bool = True,
        max_sampling_time: float | None = None,
        return_partial_on_timeout: bool = False,
    ) -> Tensor:
        """Return samples given one observation, shape `(*sample_shape, D)`.

        A warning is given once for each posterior where x is unlike the simulations.

        Args:
            sample_shape: Shape of the samples. `()` gives one sample, `(D,)`.
            x: One observation, with or without a batch axis; by default that of
                `set_default_x`.
            max_sampling_batch_size: Most samples drawn at a time; by default that given
                to the constructor.
            show_progress_bars: Whether to show progress; None for the default.
            reject_outside_prior: Whether to reject draws outside of the prior.
            max_sampling_time: Seconds after which sampling stops. If it is given, `sbi`'s
                own loop is used.
            return_partial_on_timeout: Whether to return the samples drawn by then,
                `(num_samples, D)`.

        Raises:
            ValueError: If there are several observations, or none, or if
                `max_sampling_batch_size` is less than 1.
            RuntimeError: If too few draws of the flow are inside the prior.
        """
        conditions = self._one_condition(x, "sample_batched")
        self._trust.warn_of_unusual(conditions)
        return self.sample_batched(
            sample_shape,
            conditions,
            max_sampling_batch_size,
            show_progress_bars,
            reject_outside_prior,
            max_sampling_time,
            return_partial_on_timeout,
        )[..., 0, :]

    def sample_batched(
        self,
        sample_shape: Shape,
        x: Tensor,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool | None = None,
        reject_outside_prior: bool = True,
        max_sampling_time: float | None = None,
        return_partial_on_timeout: bool = False,
    ) -> Tensor:
        """Return samples given each observation, shape `(*sample_shape, batch, D)`.

        Args:
            sample_shape: Shape of the samples for each observation.
            x: The observations, shape `(batch, *condition_shape)`.
            max_sampling_batch_size: Most samples drawn at a time, over all observations
                together; by default that given to the constructor.
            show_progress_bars: Whether to show progress; None for the default.
            reject_outside_prior: Whether to reject draws outside of the prior.
            max_sampling_time: Seconds after which sampling stops. If it is given, `sbi`'s
                own loop is used.
            return_partial_on_timeout: Whether to return the samples drawn by then.

        Raises:
            ValueError: If `max_sampling_batch_size` is less than 1.
            RuntimeError: If too few draws of the flow are inside the prior.
        """
        shape, conditions = shape_of(sample_shape), self._conditions(x)
        if max_sampling_batch_size is None:
            max_sampling_batch_size = self.max_sampling_batch_size
        check_block_size(max_sampling_batch_size)
        if max_sampling_time is not None:
            samples = super().sample_batched(
                shape,
                conditions,
                max_sampling_batch_size=max_sampling_batch_size,
                show_progress_bars=self.shows(show_progress_bars),
                reject_outside_prior=reject_outside_prior,
                max_sampling_time=max_sampling_time,
                return_partial_on_timeout=return_partial_on_timeout,
            )
        else:
            samples = self._draw(
                shape.numel(),
                conditions,
                max_sampling_batch_size,
                self.shows(show_progress_bars),
                reject_outside_prior and not self._never_leaves,
            )
        is_whole = len(samples) == shape.numel()
        return samples.reshape(*shape, *samples.shape[1:]) if is_whole else samples

    def leakage_correction(
        self,
        x: Tensor,
        num_rejection_samples: int = 10_000,
        force_update: bool = False,
        show_progress_bars: bool = False,
        rejection_sampling_batch_size: int = 10_000,
    ) -> Tensor:
        """Return the share of the flow's draws that is inside the prior, `(batch,)`.

        It is 1 where the flow never leaves the prior, and otherwise an estimate.

        Args:
            x: Observations, shape `(batch, *condition_shape)`.
            num_rejection_samples: Number of draws for each observation.
            force_update: Whether to estimate it again.
            show_progress_bars: Has no effect.
            rejection_sampling_batch_size: Most draws at a time, over all observations
                together.

        Raises:
            RuntimeError: If no draw for some observation is inside the prior.
        """
        conditions = self._conditions(x).to(device_of(self))
        if self._never_leaves:
            return self.posterior_estimator.support.low.new_ones(len(conditions))
        return self._rejection.acceptance(
            conditions, num_rejection_samples, rejection_sampling_batch_size, force_update
        )

    def _conditions(self, x: Any) -> Tensor:
        """Return observations with a batch axis, `(batch, *condition_shape)`."""
        flow = self.posterior_estimator
        return observations(x, flow.condition_shape, flow.has_nan)

    def _one_condition(self, x: Tensor | None, batched: str) -> Tensor:
        """Return the observation, or the default, `(1, *condition_shape)`.

        Args:
            x: See `sample`.
            batched: The method for several observations, for the error.
        """
        conditions = self._conditions(x_or_default(self, x))
        if len(conditions) != 1:
            raise ValueError(
                f"Expected one observation `x` (batchsize == 1), got {len(conditions)}. "
                f"For the posterior given each of them, use `.{batched}()`. For the "
                "posterior given all of them, build the posterior by "
                "`build_posterior(sample_with='energy')`."
            )
        return conditions

    @torch.no_grad()
    def _draw(
        self,
        num: int,
        conditions: Tensor,
        batch_size: int,
        show_progress: bool,
        rejects: bool,
    ) -> Tensor:
        """Return samples `(num_samples, batch, D)`, drawn `batch_size` at a time."""
        flow = self.posterior_estimator
        samples = flow.support.low.new_empty(num, len(conditions), *flow.input_shape)
        with progress_bar(num, len(conditions), show_progress) as bar:
            for rows, columns in blocks(num, len(conditions), batch_size):
                block = samples[rows, columns]
                some = conditions[columns].to(device_of(self))
                block.copy_(
                    self._rejection.sample(len(block), some, batch_size)
                    if rejects
                    else flow.sample(torch.Size(block.shape[:1]), condition=some)
                )
                bar.update(block.shape[:2].numel())
        return samples
