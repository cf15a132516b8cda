"""Pairs of parameters and features of x, drawn from a model of the simulator."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.data.batches import Batch
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.pool.candidates import Candidates, mean_of_members

NUM_BATCHES = 20
"""Batches in an epoch."""

LOG_WEIGHT_BOUNDS = (-5.0, 3.0)
"""Bounds on the log weights of pairs, in nats."""


@runtime_checkable
class Emulator(Protocol):
    """A model of the pool that can be drawn from."""

    def __call__(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return log-ratios, as `registry.PoolModel` describes them."""
        ...

    def simulate(self, theta: Tensor, features: Tensor) -> Tensor:
        """Draw features of x, shape `(N, features)`.

        Args:
            theta: Standardised parameters, shape `(N, D)`.
            features: Features of x of simulations, shape `(num, features)`.
        """
        ...

    def fit_evidence(self, candidates: Candidates) -> None:
        """Fit what depends on draws of the flow.

        Args:
            candidates: The simulations, and draws of the flow for each.
        """
        ...


class FreshBatches(ABC):
    """Batches of which there is no end. None of them is held out."""

    def __len__(self) -> int:
        return NUM_BATCHES

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Yield batches by torch's global generator; `seed` has no effect."""
        for _ in range(NUM_BATCHES):
            yield self.draw()

    def ordered(self) -> Iterator[Batch]:
        """Yield nothing."""
        return iter(())

    @abstractmethod
    def draw(self) -> Batch:
        """Return a new batch."""


@dataclass(frozen=True)
class EmulatedBatches(FreshBatches):
    r"""Fresh pairs in each batch, with weights $e^{r - r_{model}}$ and a mean of one.

    Weighted pairs are those of the posterior that r belongs to, whatever the model says.

    Attributes:
        model: The emulator.
        prior: The prior of the parameters.
        energy: The energy that standardises parameters, and whose log-ratio is r.
        features: Features of x of simulations, shape `(num, features)`.
        is_weighted: Whether pairs have weights; otherwise all are one.
        batch_size: Pairs in a batch.
    """

    model: Emulator
    prior: Distribution
    energy: ConditionalEnergy
    features: Tensor
    is_weighted: bool
    batch_size: int

    @torch.no_grad()
    def draw(self) -> Batch:
        """Return a new batch."""
        theta = self.prior.sample(torch.Size((self.batch_size,)))
        theta = theta.to(self.energy.loc)
        z = self.energy.standardize(self.energy.support.inside(theta))
        features = self.model.simulate(z, self.features)
        log_weights = z.new_zeros(len(z))
        if self.is_weighted:
            own = self.model(z.unsqueeze(0), features)[0]
            wanted = mean_of_members(self.energy.net(z.unsqueeze(0), features))[0]
            log_weights = (wanted - own).nan_to_num(LOG_WEIGHT_BOUNDS[0])
        weights = len(z) * log_weights.clamp(*LOG_WEIGHT_BOUNDS).softmax(0)
        return Batch(theta, features, weights)


@dataclass(frozen=True)
class NearbyBatches(FreshBatches):
    """Features of x near an observation, of which half are those of the observation.

    The others are emulated from a proposal, or taken from simulations.

    Attributes:
        draw_features: Maps a number to features of that many x near the observation.
        observed: Features of the observations, shape `(n, features)`; None if unknown.
        theta: Parameters that stand in the batches, which nothing uses, `(1, D)`.
        batch_size: x in a batch.
    """

    draw_features: Callable[[int], Tensor]
    observed: Tensor | None
    theta: Tensor
    batch_size: int

    @torch.no_grad()
    def draw(self) -> Batch:
        """Return a new batch."""
        half = 0 if self.observed is None else self.batch_size // 2
        features = self.draw_features(self.batch_size - half)
        if self.observed is not None:
            rows = torch.arange(half, device=features.device) % len(self.observed)
            features = torch.cat([self.observed[rows], features])
        theta = self.theta.expand(len(features), -1)
        return Batch(theta, features, features.new_ones(len(features)))
