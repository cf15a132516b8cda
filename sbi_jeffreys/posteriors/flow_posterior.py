"""The flow as a posterior that needs no rejection: all samples are inside the prior."""

from typing import Any

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.potentials.posterior_based_potential import PosteriorBasedPotential
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.utils import RestrictedPrior
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import device_of, x_or_default
from sbi_jeffreys.diagnostics.agreement import AgreementReport
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow, Shape
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors.interface import move, observations
from sbi_jeffreys.posteriors.trust import TrustCheck
from sbi_jeffreys.sampling.blocks import blocks, progress_bar

NEXT_TO_BOUNDS = 1e-3
"""Share of an interval, at either end, in which the flow's density counts as constant."""


class FlowPosterior(DirectPosterior):
    """`sbi`'s `DirectPosterior` of a flow that never leaves the prior's support.

    Samples are drawn once, without rejection. Memory is bounded: at most
    `max_sampling_batch_size` samples are drawn at a time, over all observations together.
    Densities need no correction for leakage. `agreement` compares the flow with the
    energy that was trained beside it. The rest is as in `sbi`.

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
        x_shape: torch.Size | None = None,
        enable_transform: bool = True,
        energy: ConditionalEnergy | None = None,
        novelty: Novelty | None = None,
        num_simulations: int | None = None,
        is_amortised: bool = True,
    ) -> None:
        """
        Args:
            posterior_estimator: The flow.
            prior: Its support contains all samples of the flow.
            max_sampling_batch_size: Most samples drawn at a time, over all observations
                together.
            device: Where to sample; by default where the flow is.
            x_shape: Deprecated in `sbi`.
            enable_transform: Whether `map` ascends in unconstrained space.
            energy: The energy that was trained with the flow, for `agreement`.
            novelty: Compares observations with the simulations, for `agreement`.
            num_simulations: Number of simulations that the models were trained on. It
                is only recorded.
            is_amortised: Whether it is meant for all x, and not just near the observation
                of several rounds.
        """
        self.is_amortised = is_amortised
        pair = None if energy is None else ModelPair(posterior_estimator, energy)
        self._trust = TrustCheck(pair, prior, novelty)
        self.num_simulations = num_simulations
        self._set_up(
            posterior_estimator,
            prior,
            max_sampling_batch_size,
            device,
            x_shape,
            enable_transform,
        )

    def _set_up(self, *arguments: Any, **options: Any) -> None:
        """Set up a `DirectPosterior`, with a potential of our own."""
        DirectPosterior.__init__(self, *arguments, **options)
        self.potential_fn = _FlowPotential(
            self.posterior_estimator, self.prior, device=device_of(self)
        )

    @property
    def pair(self) -> ModelPair | None:
        """Flow and energy, or None if there is no energy."""
        return self._trust.pair

    @property
    def novelty(self) -> Novelty | None:
        """What compares observations with the simulations, or None."""
        return self._trust.novelty

    def to(self, device: torch.device | str) -> None:
        """Move the models, the prior, the simulations and the default x to a device."""

        def set_up(device: torch.device | str) -> None:
            self._set_up(
                self.posterior_estimator.to(device),
                self._trust.prior,
                self.max_sampling_batch_size,
                device,
                enable_transform=self.enable_transform,
            )

        move(self, self._trust, device, set_up)

    def agreement(
        self, x: Tensor | None = None, num_samples: int = 2_000
    ) -> AgreementReport:
        """Return how flow and energy agree at each observation. Print it to read it.

        Each observation is judged by itself. A warning is given once for each posterior
        where k̂ > 0.7.

        Args:
            x: Observations, shape `(batch, *condition_shape)`; by default that of
                `set_default_x`.
            num_samples: Draws from the flow for each observation, at least 100.

        Raises:
            ValueError: If there are too few samples, or there is no observation.
            RuntimeError: If there is no energy, or no draw of the flow is inside the
                prior.
        """
        conditions = self._conditions(x_or_default(self, x)).to(device_of(self))
        report = self._trust.report(conditions, num_samples, self.max_sampling_batch_size)
        self._trust.warn_of_tail(report.pareto_k)
        return report

    def log_prob(self, theta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return log densities in nats, shape `(N,)`; arguments are `sbi`'s."""
        theta = _away_from_bounds(self.posterior_estimator, theta)
        return super().log_prob(theta, *args, **kwargs)

    def log_prob_batched(self, theta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return log densities in nats, `(*shape, batch)`; arguments are `sbi`'s."""
        theta = _away_from_bounds(self.posterior_estimator, theta)
        return super().log_prob_batched(theta, *args, **kwargs)

    def sample(
        self,
        sample_shape: Shape = (),
        x: Tensor | None = None,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool = True,
        reject_outside_prior: bool = True,
        max_sampling_time: float | None = None,
        return_partial_on_timeout: bool = False,
    ) -> Tensor:
        """Return samples given one observation, shape `(num_samples, D)`.

        A warning is given once for each posterior where x is unlike the simulations.

        Args:
            sample_shape: `num_samples` is the product of its entries.
            x: One observation, with or without a batch axis; by default that of
                `set_default_x`.
            max_sampling_batch_size: Most samples drawn at a time; by default that given
                to the constructor.
            show_progress_bars: Whether to show progress.
            reject_outside_prior: Has no effect, because no sample is outside the prior.
            max_sampling_time: Seconds after which sampling stops. If it is given, `sbi`'s
                own loop is used.
            return_partial_on_timeout: Whether to return the samples drawn by then.

        Raises:
            ValueError: If there are several observations, or none, or if
                `max_sampling_batch_size` is less than 1.
        """
        conditions = self._conditions(x_or_default(self, x))
        if len(conditions) != 1:
            raise ValueError(
                f"Expected one observation `x` (batchsize == 1), got {len(conditions)}. "
                "For the posterior given each of them, use `.sample_batched()`. For the "
                "posterior given all of them, build the posterior by "
                "`build_posterior(sample_with='energy')`."
            )
        self._trust.warn_of_unusual(conditions)
        return self.sample_batched(
            sample_shape,
            conditions,
            max_sampling_batch_size,
            show_progress_bars,
            reject_outside_prior,
            max_sampling_time,
            return_partial_on_timeout,
        )[:, 0]

    def sample_batched(
        self,
        sample_shape: Shape,
        x: Tensor,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool = True,
        reject_outside_prior: bool = True,
        max_sampling_time: float | None = None,
        return_partial_on_timeout: bool = False,
    ) -> Tensor:
        """Return samples given each observation, shape `(num_samples, batch, D)`.

        Args:
            sample_shape: `num_samples` is the product of its entries.
            x: The observations, shape `(batch, *condition_shape)`.
            max_sampling_batch_size: Most samples drawn at a time, over all observations
                together; by default that given to the constructor.
            show_progress_bars: Whether to show progress.
            reject_outside_prior: Has no effect, because no sample is outside the prior.
            max_sampling_time: Seconds after which sampling stops. If it is given, `sbi`'s
                own loop is used.
            return_partial_on_timeout: Whether to return the samples drawn by then.

        Raises:
            ValueError: If `max_sampling_batch_size` is less than 1.
        """
        if max_sampling_time is not None:
            return super().sample_batched(
                sample_shape,
                x,
                max_sampling_batch_size,
                show_progress_bars,
                reject_outside_prior,
                max_sampling_time,
                return_partial_on_timeout,
            )
        return self._draw(
            sample_shape, self._conditions(x), max_sampling_batch_size, show_progress_bars
        )

    def leakage_correction(
        self,
        x: Tensor,
        num_rejection_samples: int = 10_000,
        force_update: bool = False,
        show_progress_bars: bool = False,
        rejection_sampling_batch_size: int = 10_000,
    ) -> Tensor:
        """Return the acceptance rate for each observation, 1, shape `(batch,)`.

        Args:
            x: Observations, shape `(batch, *condition_shape)`.
            num_rejection_samples: Has no effect.
            force_update: Has no effect.
            show_progress_bars: Has no effect.
            rejection_sampling_batch_size: Has no effect.
        """
        return torch.ones(len(self._conditions(x)), device=device_of(self))

    def _conditions(self, x: Tensor) -> Tensor:
        """Return observations with a batch axis, `(batch, *condition_shape)`."""
        return observations(x, self.posterior_estimator.condition_shape)

    @torch.no_grad()
    def _draw(
        self,
        sample_shape: Shape,
        conditions: Tensor,
        batch_size: int | None,
        show_progress: bool,
    ) -> Tensor:
        """Return samples `(num_samples, batch, D)`, drawn `batch_size` at a time."""
        flow = self.posterior_estimator
        num, size = torch.Size(sample_shape).numel(), batch_size
        if size is None:
            size = self.max_sampling_batch_size
        samples = torch.empty(
            (num, len(conditions), *flow.input_shape), device=device_of(self)
        )
        with progress_bar(num, len(conditions), show_progress) as bar:
            for rows, columns in blocks(num, len(conditions), size):
                block = samples[rows, columns]
                some = conditions[columns].to(device_of(self))
                block.copy_(flow.sample(torch.Size(block.shape[:1]), condition=some))
                bar.update(block.shape[:2].numel())
        return samples


class _FlowPotential(PosteriorBasedPotential):
    """The potential for `map` and for conditional densities."""

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:
        theta = _away_from_bounds(self.posterior_estimator, theta)
        return super().__call__(theta, track_gradients)


def _away_from_bounds(flow: ConditionalFlow, theta: Tensor) -> Tensor:
    theta = torch.as_tensor(theta).to(flow.support.low)
    return flow.support.away_from_bounds(theta, NEXT_TO_BOUNDS)


def never_leaves(
    estimator: ConditionalDensityEstimator,
    prior: Distribution,
    device: torch.device | str,
) -> bool:
    """Return whether the estimator's samples are all inside the prior's support.

    Args:
        estimator: The posterior's estimator. Only a `ConditionalFlow` knows its support.
        prior: The prior that samples have to stay inside.
        device: The prior's device.
    """
    if (
        not isinstance(estimator, ConditionalFlow)
        or not estimator.support.is_exact
        or isinstance(prior, RestrictedPrior)
    ):
        return False
    support = estimator.support
    far = support.low.new_tensor([[-100.0], [100.0]]).expand(2, len(support.low))
    corners, _ = support.inverse(far)
    return bool(within_support(prior, corners.to(device)).all())
