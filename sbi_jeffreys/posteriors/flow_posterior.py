"""The flow as a posterior that needs no rejection, for it does not leave the prior."""

from typing import Any

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.potentials.posterior_based_potential import PosteriorBasedPotential
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils import RestrictedPrior
from sbi.utils.sbiutils import within_support
from sbi.utils.torchutils import process_device
from sbi.utils.user_input_checks import process_x
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.diagnostics.agreement import ChecksAgreement
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow, Shape
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.sampling.blocks import blocks, progress_bar

NEXT_TO_BOUNDS = 1e-3
"""Part of an interval, at either end, in which a flow's density is taken for constant."""


class FlowPosterior(ChecksAgreement, DirectPosterior):
    """`sbi`'s `DirectPosterior` of a flow that never leaves the prior's support.

    Samples are drawn once, without rejection, and in bounded memory: at most
    `max_sampling_batch_size` at a time, over draws and observations together. Densities
    need no correction for leakage. `agreement` compares the flow with the energy that
    was trained beside it. All else is as in `sbi`.

    Within a thousandth of an interval from its bounds there are next to no simulations,
    and on a bound itself the flow has no density: densities there are those at the
    thousandth (but not those of `posterior_estimator` itself).
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
    ) -> None:
        """
        Args:
            posterior_estimator: The flow.
            prior: It is never outside of.
            max_sampling_batch_size: Most samples drawn at a time.
            device: Where to sample; by default where the flow is.
            x_shape: Deprecated in `sbi`.
            enable_transform: Whether `map` ascends in unconstrained space.
            energy: That was trained with the flow, for `agreement`.
            novelty: Compares observations with the simulations, likewise.
            num_simulations: That flow and energy were trained on, for the record.
        """
        self._set_up(
            posterior_estimator,
            prior,
            max_sampling_batch_size,
            device,
            x_shape,
            enable_transform,
        )
        self.pair = None if energy is None else ModelPair(posterior_estimator, energy)
        self.novelty = novelty
        self.num_simulations = num_simulations

    def _set_up(self, *arguments: Any, **options: Any) -> None:
        """Do what `DirectPosterior` does at first, with a potential of our own."""
        DirectPosterior.__init__(self, *arguments, **options)
        self.potential_fn = _FlowPotential(
            self.posterior_estimator, self.prior, device=self._device
        )

    def to(self, device: torch.device | str) -> None:
        """Move all that belongs to the posterior, also a prior that has no `to`."""
        device, x = process_device(device), self.default_x
        for module in (self.posterior_estimator, self.pair, self.novelty):
            if module is not None:
                module.to(device)
        self._set_up(
            self.posterior_estimator,
            move_distribution_to_device(self.prior, device),
            self.max_sampling_batch_size,
            device,
            enable_transform=self.enable_transform,
        )
        if x is not None:
            self.set_default_x(x.to(device))

    def log_prob(self, theta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return log densities in nats, shape `(N,)`; arguments are `sbi`'s."""
        theta = _away_from_bounds(self.posterior_estimator, theta)
        return super().log_prob(theta, *args, **kwargs)

    def log_prob_batched(self, theta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return log densities in nats, shape `(*sample_shape, batch)`, likewise."""
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

        Warns, once for each posterior, where x is unlike the simulations (`agreement`).

        Args as for `sample_batched`, but x is one observation, with or without a batch
        axis, and by default that of `set_default_x`.

        Raises:
            ValueError: If there are several observations, or none.
        """
        conditions = self._conditions(self._x_else_default_x(x))
        if len(conditions) != 1:
            raise ValueError(
                f"Expected one observation `x` (batchsize == 1), got {len(conditions)}. "
                "For the posterior given each, use `.sample_batched()`. For that given "
                "all of them, which a flow does not know, "
                "`build_posterior(sample_with='energy')`."
            )
        self._warn_of_unusual(conditions)
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
            sample_shape: Of which `num_samples` is the product.
            x: The observations, shape `(batch, *condition_shape)`.
            max_sampling_batch_size: Most samples drawn at a time, for all observations
                together; by default that given to the constructor.
            show_progress_bars: Whether to show progress.
            reject_outside_prior: Without effect; there are none outside.
            max_sampling_time: Seconds after which `sbi`'s own loop, used if a time is
                given, stops.
            return_partial_on_timeout: Whether to return what there is by then.

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
            x: Observations; the other arguments, which are sbi's, have no effect.
        """
        return torch.ones(len(self._conditions(x)), device=self._device)

    def _conditions(self, x: Tensor) -> Tensor:
        shape = self.posterior_estimator.condition_shape
        return reshape_to_batch_event(process_x(x), shape)

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
            (num, len(conditions), *flow.input_shape), device=self._device
        )
        with progress_bar(num, len(conditions), show_progress) as bar:
            for rows, columns in blocks(num, len(conditions), size):
                block = samples[rows, columns]
                some = conditions[columns].to(self._device)
                block.copy_(flow.sample(torch.Size(block.shape[:1]), condition=some))
                bar.update(block.shape[:2].numel())
        return samples


class _FlowPotential(PosteriorBasedPotential):
    """What `map` ascends, and conditional densities are of."""

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
    """Return whether the estimator's samples are all inside of the prior's support.

    Args:
        estimator: Of the posterior; a `ConditionalFlow` may have such a support.
        prior: That samples would have to stay inside of.
        device: The prior's.
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
