"""Samples of the energy model, from draws of the flow.

Samples are chosen without replacement from more draws of the flow, in proportion to
Pareto-smoothed importance weights. Draws are added until their effective sample size is
large enough and choosing without replacement displaces little of the weight. Where too
much is displaced even from the largest number of draws, the draws go by sequential Monte
Carlo from the flow to the energy. These rules hold also where one sample is wanted: its
distribution must not depend on how many others come with it.
"""

from dataclasses import dataclass
from math import ceil

import torch
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.sampling.blocks import blocks, progress_bar
from sbi_jeffreys.sampling.importance_weights import (
    ImportanceWeights,
    effective_sample_size,
    smoothed_weights,
)
from sbi_jeffreys.sampling.resampling import displaced_share, resample
from sbi_jeffreys.sampling.smc import MIN_PARTICLES, anneal, resample_and_move

ESS_PER_SAMPLE = 1.5
"""Effective sample size of the draws, per sample, at which no draws are added."""

MAX_DISPLACED = 0.01
"""Share of the weight that choosing without replacement may move to other draws."""

MAX_DRAWS_PER_SAMPLE = 16.0
"""Largest number of draws per sample."""

MIN_DRAWS, FEWEST_MAX_DRAWS = 150, 2_000
"""However few samples are wanted: draws for each observation, and the largest number of
them."""

MIN_EFFECTIVE = 100.0
"""However few samples are wanted: effective sample size at which no draws are added, and
that the first step from flow to energy keeps."""

MIN_DRAWS_TO_JUDGE = 1_000
"""Number of draws from which k̂ is reported and samples may be moved."""


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

    @property
    def max_draws(self) -> int:
        """Largest number of draws for each observation."""
        return max(FEWEST_MAX_DRAWS, ceil(MAX_DRAWS_PER_SAMPLE * self.num))

    @property
    def first_draws(self) -> int:
        """Number of draws for each observation before any are added."""
        enough = ceil(1.2 * ESS_PER_SAMPLE * self.num)
        return min(self.max_draws, max(MIN_DRAWS, self.num, enough))

    def sample(self, x: Tensor, show_progress: bool = False) -> tuple[Tensor, Tensor]:
        """Return samples and how reliable their weights are.

        Args:
            x: Observations, shape `(batch, *condition_shape)`.
            show_progress: Whether to show a progress bar.

        Returns:
            Samples, shape `(num, batch, D)`, and the shape k̂ of the weights' tail,
            `(batch,)`. k̂ is minus infinity where there are fewer than 1,000 draws,
            because these are too few to judge.

        Raises:
            ValueError: If `block_size` is less than 1.
            RuntimeError: If no draw for some observation is inside the prior.
            FloatingPointError: If a weight is NaN or plus infinity.
        """
        samples = x.new_empty(self.num, len(x), *self.pair.flow.input_shape)
        pareto_k = x.new_full((len(x),), -torch.inf)
        size = max(self.first_draws, self.block_size)
        with progress_bar(self.num, len(x), show_progress) as bar:
            for _, columns in blocks(self.first_draws, len(x), size):
                some = x[columns]
                samples[:, columns], pareto_k[columns] = self._sample_block(some)
                bar.update(self.num * len(some))
        return samples, pareto_k

    def _sample_block(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Add draws for some observations until these are good enough for each."""
        columns = torch.arange(len(x))
        theta, log_weights = self._draw(x, self.first_draws)
        samples = theta.new_empty(self.num, len(x), theta.shape[-1])
        pareto_k = theta.new_full((len(x),), -torch.inf)
        while True:
            growth, crowded = self._missing(log_weights)
            ready = (growth <= 1) | (len(theta) >= self.max_draws)
            if bool(ready.any()):
                weights = smoothed_weights(theta[:, ready], log_weights[:, ready])
                done = columns[ready]
                samples[:, done] = self._choose(weights, x[done], crowded[ready])
                if len(theta) >= MIN_DRAWS_TO_JUDGE:
                    pareto_k[done] = weights.pareto_k
            if bool(ready.all()):
                return samples, pareto_k
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
        """Return by which factor the draws should grow, and where too much is displaced.

        Returns:
            Factors, at most 1 where the draws are enough, and booleans, each `(batch,)`.
        """
        ess = effective_sample_size(log_weights).cpu()
        fewest = max(self.num, round(MIN_EFFECTIVE))
        crowded = displaced_share(log_weights, fewest).cpu() > MAX_DISPLACED
        growth = max(ESS_PER_SAMPLE * self.num, MIN_EFFECTIVE) / ess
        return torch.where(crowded, growth.clamp(min=1.5), growth), crowded

    def _choose(self, weights: ImportanceWeights, x: Tensor, crowded: Tensor) -> Tensor:
        """Choose samples, `(num, batch, D)`; anneal them where too much is displaced."""
        chosen = resample(weights.log_weights, self.num)
        samples = weights.theta.take_along_dim(chosen.unsqueeze(-1), 0)
        if len(weights.theta) >= MIN_DRAWS_TO_JUDGE and bool(crowded.any()):
            samples[:, crowded] = self._anneal(
                weights.theta[:, crowded], weights.log_weights[:, crowded], x[crowded]
            )
        return samples

    @torch.no_grad()
    def _anneal(self, theta: Tensor, log_weights: Tensor, x: Tensor) -> Tensor:
        """Return samples `(num, batch, D)` by going from the flow to the energy."""
        flow, energy = self.pair.given(x)
        rows = max(1, self.block_size // len(x))

        def log_energy(theta: Tensor) -> Tensor:
            f = torch.cat([energy(some) for some in theta.split(rows)])
            inside = within_support(self.prior, theta.flatten(0, 1)).reshape(f.shape)
            return torch.where(inside, f, -torch.inf)

        def flow_and_energy(theta: Tensor) -> tuple[Tensor, Tensor]:
            log_flow = torch.cat([flow.log_prob(some) for some in theta.split(rows)])
            return log_flow, log_energy(theta)

        support, num = self.pair.energy.support, max(self.num, MIN_PARTICLES)
        particles = anneal(
            flow_and_energy, support, theta, log_weights, num, MIN_EFFECTIVE
        )
        return resample_and_move(log_energy, support, particles, num)[: self.num]
