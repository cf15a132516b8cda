"""A posterior that needs no rejection, for the flow does not leave the prior."""

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils import RestrictedPrior
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_jeffreys.flow import ConditionalFlow, Shape


class FlowPosterior(DirectPosterior):
    """`sbi`'s `DirectPosterior` of a flow that never leaves the prior's support.

    Samples are drawn once, without rejection, and in bounded memory: at most
    `max_sampling_batch_size` at a time, over draws and observations together. Densities
    need no correction for leakage. All else is as in `sbi`.
    """

    def sample(
        self,
        sample_shape: Shape = (),
        x: Tensor | None = None,
        max_sampling_batch_size: int | None = 10_000,
        show_progress_bars: bool = True,
        reject_outside_prior: bool = True,
        max_sampling_time: float | None = None,
        return_partial_on_timeout: bool = False,
    ) -> Tensor:
        """Return samples given one observation, shape `(num_samples, D)`.

        Args as for `sample_batched`, but x is one observation, with or without a batch
        axis, and by default that of `set_default_x`.

        Raises:
            ValueError: If there are several observations, or none.
        """
        x = self._x_else_default_x(x)
        conditions = self._conditions(x)
        if len(conditions) != 1:
            return super().sample(sample_shape, x)  # which says what to do instead
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
        max_sampling_batch_size: int | None = 10_000,
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
                together; None for that given to the constructor.
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
        return reshape_to_batch_event(x, self.posterior_estimator.condition_shape)

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
        if size < 1:
            raise ValueError(
                f"Expected `max_sampling_batch_size` to be at least 1, got {size}."
            )
        draws = max(1, min(num, size))
        width = size // draws
        samples = torch.empty(
            (num, len(conditions), *flow.input_shape), device=self._device
        )
        with tqdm(
            total=num * len(conditions),
            desc=f"Drawing {num} samples for each of {len(conditions)} observations",
            disable=not show_progress,
        ) as bar:
            for column in range(0, len(conditions), width):
                some = conditions[column : column + width].to(self._device)
                for row in range(0, num, draws):
                    block = samples[row : row + draws, column : column + width]
                    block.copy_(flow.sample(torch.Size(block.shape[:1]), condition=some))
                    bar.update(block.shape[:2].numel())
        return samples


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
