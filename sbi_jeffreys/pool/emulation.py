"""Pairs of parameters and features of x, drawn from a model of the simulator."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.data.batches import Batch
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.pool.candidates import Candidates, mean_of_members
from sbi_jeffreys.sampling.resampling import resample

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


class Emulated(NamedTuple):
    """What x near an observation are emulated with.

    Attributes:
        model: The emulator.
        features: Features of x of simulations, shape `(num, features)`.
    """

    model: Emulator
    features: Tensor


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
class HalfSimulatedBatches(FreshBatches):
    """Features of x, half of them of simulations and half emulated.

    Emulated x are new in each batch. Those of simulations are right where the emulator is
    not. The parameters are not those of the x.

    Attributes:
        emulated: Where the other half comes from.
    """

    emulated: EmulatedBatches

    @torch.no_grad()
    def draw(self) -> Batch:
        """Return a new batch."""
        theta, features, weights = self.emulated.draw()
        simulated, half = self.emulated.features, len(features) // 2
        rows = torch.randint(len(simulated), (half,), device=simulated.device)
        features = torch.cat([simulated[rows], features[half:]])
        return Batch(theta, features, weights)


NUM_CANDIDATES = 32
"""Draws of a proposal of which one is chosen for each x near an observation."""


@dataclass(frozen=True)
class NearbyBatches(FreshBatches):
    r"""Pairs of an energy's posteriors given x near an observation.

    Half of the x are the observation. The others are emulated from a proposal, or taken
    from simulations. The parameters for each x are chosen among draws of the proposal by
    their importance weights $e^{f(\theta, x)} / \tilde p(\theta)$ (Rubin 1988).

    Attributes:
        draw_x: Maps a number to that many x near the observation, or features of x.
        observed: The observations, or their features, `(n, ...)`; None if unknown.
        proposal: Its draws cover the posteriors given x near the observation.
        energy: Maps parameters `(sample, batch, D)` and x to f, `(sample, batch)`.
        batch_size: x in a batch.
    """

    draw_x: Callable[[int], Tensor]
    observed: Tensor | None
    proposal: Distribution
    energy: Callable[[Tensor, Tensor], Tensor]
    batch_size: int

    @torch.no_grad()
    def draw(self) -> Batch:
        """Return a new batch."""
        half = 0 if self.observed is None else self.batch_size // 2
        x = self.draw_x(self.batch_size - half)
        if self.observed is not None:
            rows = torch.arange(half, device=x.device) % len(self.observed)
            x = torch.cat([self.observed[rows], x])
        theta = self.proposal.sample(torch.Size((NUM_CANDIDATES * len(x),)))
        log_proposal = self.proposal.log_prob(theta).to(x).reshape(NUM_CANDIDATES, -1)
        theta = theta.to(x).reshape(*log_proposal.shape, -1)
        log_weights = self.energy(theta, x) - log_proposal
        chosen = resample(log_weights, 1, replacement=True).unsqueeze(-1)
        theta = theta.take_along_dim(chosen, 0)[0]
        return Batch(theta, x, x.new_ones(len(x)))
