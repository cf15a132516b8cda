"""Samples of the energy model, from draws of the flow.

Samples are chosen without replacement from more draws of the flow, in proportion to
Pareto-smoothed importance weights. Draws are added until their effective sample size is
large enough, the weights bias the samples little, and choosing without replacement
displaces little of the weight. Where even the largest number of draws biases or displaces
too much, or the tail of the weights is too heavy (k̂ > 0.7), the draws go by sequential
Monte Carlo from the flow to the energy.

N draws bias the mean of the chosen ones by about χ² / N standard deviations, where χ² is
the variance of the weights divided by their mean. This holds also where one sample is
wanted: its distribution must not depend on how many others come with it.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors.annealing import Corrected, annealed
from sbi_jeffreys.sampling.blocks import blocks, check_block_size, progress_bar
from sbi_jeffreys.sampling.importance_weights import (
    effective_sample_size,
    smoothed_weights,
)
from sbi_jeffreys.sampling.psis import MAX_PARETO_K
from sbi_jeffreys.sampling.resampling import displaced_share, resample

ESS_PER_SAMPLE = 1.5
"""Effective sample size of the draws, per sample, at which no draws are added."""

MAX_DISPLACED = 0.01
"""Share of the weight that choosing without replacement may move to other draws."""

MAX_DRAWS_PER_SAMPLE = 16.0
"""Largest number of draws per sample."""

MIN_DRAWS, FEWEST_MAX_DRAWS = 60, 2_000
"""However few samples are wanted: draws for each observation, and the largest number of
them."""

MAX_BIAS = 0.005
"""Largest bias of samples' means, in standard deviations, at which no draws are added."""

MIN_DRAWS_TO_JUDGE = 1_000
"""Number of draws from which k̂ counts and samples may be moved."""


@dataclass(frozen=True)
class CorrectedSampler:
    """Samples the energy model given each of several observations.

    Attributes:
        pair: Flow and energy.
        prior: All samples are inside its support.
        num: Samples for each observation.
        block_size: Most parameters drawn or evaluated at a time, over all observations
            together.
    """

    pair: ModelPair
    prior: Distribution
    num: int
    block_size: int

    def __post_init__(self) -> None:
        """Raise a ValueError if `block_size` is less than 1."""
        check_block_size(self.block_size)

    @property
    def max_draws(self) -> int:
        """Largest number of draws for each observation."""
        return max(FEWEST_MAX_DRAWS, ceil(MAX_DRAWS_PER_SAMPLE * self.num))

    @property
    def first_draws(self) -> int:
        """Number of draws for each observation before any are added."""
        enough = ceil(1.2 * ESS_PER_SAMPLE * self.num)
        return min(self.max_draws, max(MIN_DRAWS, self.num, enough))

    def sample(self, x: Tensor, show_progress: bool = False) -> Corrected:
        """Return samples, shape `(num, batch, D)`, and where they are reliable.

        Args:
            x: Observations, shape `(batch, *condition_shape)`.
            show_progress: Whether to show a progress bar.

        Raises:
            RuntimeError: If no draw for some observation is inside the prior.
            FloatingPointError: If a weight is NaN or plus infinity.
        """
        result = Corrected(
            x.new_empty(self.num, len(x), *self.pair.flow.input_shape),
            torch.ones(len(x), dtype=torch.bool),
        )
        size = max(self.first_draws, self.block_size)
        with progress_bar(self.num, len(x), show_progress) as bar:
            for _, columns in blocks(self.first_draws, len(x), size):
                some = self._sample_block(x[columns])
                result.theta[:, columns] = some.theta
                result.is_reliable[columns] = some.is_reliable
                bar.update(some.theta[..., 0].numel())
        return result

    def _sample_block(self, x: Tensor) -> Corrected:
        """Add draws for some observations until these are good enough for each."""
        columns = torch.arange(len(x))
        theta, log_weights = self._draw(x, self.first_draws)
        samples = theta.new_empty(self.num, len(x), theta.shape[-1])
        is_reliable = torch.ones(len(x), dtype=torch.bool)
        while True:
            growth, failed = self._missing(log_weights)
            ready = (growth <= 1) | (len(theta) >= self.max_draws)
            if bool(ready.any()):
                done = columns[ready]
                samples[:, done], is_reliable[done] = self._choose(
                    theta[:, ready], log_weights[:, ready], x[done], failed[ready]
                )
            if bool(ready.all()):
                return Corrected(samples, is_reliable)
            theta, log_weights = theta[:, ~ready], log_weights[:, ~ready]
            columns, growth = columns[~ready], growth[~ready]
            total = ceil(float(growth.median().clamp(1.2, 2.0)) * len(theta))
            num_more = min(total, self.max_draws) - len(theta)
            more_theta, more_log_weights = self._draw(x[columns], num_more)
            theta = torch.cat([theta, more_theta])
            log_weights = torch.cat([log_weights, more_log_weights])

    def _draw(self, x: Tensor, num: int) -> tuple[Tensor, Tensor]:
        return self.pair.weighted_draws(x, num, self.prior, self.block_size)

    def _missing(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return by which factor the draws should grow, and where they do not serve.

        They do not where too much weight is displaced, or the samples are biased.

        Returns:
            Factors, at most 1 where the draws are enough, and booleans, each `(batch,)`.
        """
        ess = effective_sample_size(log_weights).cpu()
        bias = 1 / ess - 1 / len(log_weights)  # χ² / N
        displaced = displaced_share(log_weights, self.num).cpu()
        growth = torch.maximum(ESS_PER_SAMPLE * self.num / ess, bias / MAX_BIAS)
        growth = torch.where(displaced > MAX_DISPLACED, growth.clamp(min=1.5), growth)
        return growth, (displaced > MAX_DISPLACED) | (bias > MAX_BIAS)

    def _choose(
        self, theta: Tensor, log_weights: Tensor, x: Tensor, failed: Tensor
    ) -> Corrected:
        """Choose samples. Anneal where the draws failed or their tail is heavy."""
        weights = smoothed_weights(theta, log_weights)
        chosen = resample(weights.log_weights, self.num)
        samples = theta.take_along_dim(chosen.unsqueeze(-1), 0)
        is_reliable = torch.ones_like(failed)
        if len(theta) >= MIN_DRAWS_TO_JUDGE:
            hard = failed | (weights.pareto_k.cpu() > MAX_PARETO_K)
            if bool(hard.any()):
                samples[:, hard], is_reliable[hard] = annealed(
                    self.pair,
                    self.prior,
                    x[hard],
                    theta[:, hard],
                    log_weights[:, hard],
                    self.num,
                    self.block_size,
                )
        return Corrected(samples, is_reliable)
