"""The stages of a training: the networks, their pool, and the flow that follows it.

1. The networks train in cycles of the learning rate (`training`).
2. After the first cycle the pool's models are fitted, and the flow learns from pairs that
   one of them emulates (`pool`). Held-out pairs then choose the weights of the models.
3. The networks go on for as long as they have a part in the pool.
4. The flow follows the pooled energy (`training.following`), if held-out pairs are
   likelier under it than under the flow. If they are by far, the models are fitted again
   on the way, to draws of the better flow.

Without the pool the networks train until their held-out loss stalls, which is the paper's
method. They do so before the second stage if x is embedded by a network that learns.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import inf, nan, sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import TrainConfig
from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.store import SimulationStore
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.models.prior_base import base_density, log_prior_floor
from sbi_jeffreys.pool.candidates import Focus
from sbi_jeffreys.pool.emulation import (
    Emulated,
    EmulatedBatches,
    Emulator,
    HalfSimulatedBatches,
    NearbyBatches,
)
from sbi_jeffreys.pool.opinion_pool import PoolFit
from sbi_jeffreys.preprocessing.true_support import evaluated_anywhere
from sbi_jeffreys.progress import FOLLOWING_WORK, WorkAfterNetworks, shown
from sbi_jeffreys.proposals.mixture import ProposalMixture
from sbi_jeffreys.training.checkpoint import Pooling
from sbi_jeffreys.training.following import Guide
from sbi_jeffreys.training.loop import JeffreysTraining

FULL_EFFORT = 40
"""Smallest `max_num_epochs` with which the pool and the following are not cut short. With
fewer, their steps are fewer in proportion."""

MAX_LAG = 2.0
"""Nats by which the networks may be behind the pool after the first cycle, to go on."""

MIN_SHARE, MIN_GAIN = 0.05, 0.03
"""What the networks need to go on after later cycles: a weight in the pool, and a gain of
the pool in the last cycle, in nats."""

MOST_CYCLES = 5
"""Cycles after which the networks do not go on beside the pool."""

EPOCHS_TO_LEARN, EPOCHS_TO_FOLLOW = 15, 45
"""Epochs of emulated batches with 1,000 simulations: for the flow to learn from them
before the pool's weights are chosen, and to follow the pooled energy. They grow with the
square root of the number of simulations."""

EPOCHS_TO_REFIT = 15
"""Those of the following after which models are fitted again, if the flow is far off."""

MAX_BATCH_SIZE = 200
"""Largest number of emulated pairs in a batch."""

NETWORKS = "JNPE trains its networks"
LEARNING = "JNPE's flow learns from its pool (2/3)"
"""Labels of progress bars."""


class Pooled(NamedTuple):
    """What pooling gave.

    Attributes:
        energy: The pooled energy, or that of the networks if no model has a weight.
        weights: The weights of the models, by name.
        loss: Held-out negative log-likelihood of the pool before its models are fitted to
            held-out pairs, in nats; NaN where some parameters come from proposals.
        has_converged: Whether the networks' training ended by itself.
        emulated: What x can be emulated with, or None.
    """

    energy: ConditionalEnergy
    weights: dict[str, float]
    loss: float
    has_converged: bool
    emulated: Emulated | None


@dataclass(frozen=True)
class Stages:
    """The stages of one call of `train`.

    Attributes:
        training: The training of the networks.
        simulations: All simulations.
        rows: Rows of the simulations to train on, and held-out ones.
        batches: Pairs to train on.
        held_out: Held-out pairs.
        config: Arguments of `train`, without `stop_after_epochs`.
        patience: `stop_after_epochs`, or None for the default rule.
        prior: The prior of the parameters, or None.
        mixture: The density of all parameters, where some come from proposals.
        show_progress: Whether to show progress bars.
    """

    training: JeffreysTraining
    simulations: SimulationStore
    rows: tuple[Tensor, Tensor]
    batches: Batches
    held_out: Batches
    config: TrainConfig
    patience: int | None
    prior: Distribution | None
    mixture: ProposalMixture | None
    show_progress: bool

    @property
    def embedding_learns(self) -> bool:
        """Whether the energy's embedding of x is trained."""
        return any(True for _ in self.training.pair.energy.embedding_net.parameters())

    @property
    def work_after_networks(self) -> float:
        """The work of the pool and of the flow that learns and follows, in steps."""
        return self._work.steps_with_pool(EPOCHS_TO_LEARN + EPOCHS_TO_FOLLOW)

    def train(self, until: int | None = None, work: float = 0.0) -> bool:
        """Train the networks; return whether this ended by itself.

        Args:
            until: Most epochs; None for all there may be.
            work: Work that comes after, in steps, for the progress bar.
        """
        most = self.config.max_num_epochs
        if until is not None:
            most = min(most, until)
        return self.training.run(
            self.batches,
            self.held_out,
            most,
            self.patience,
            self.config.clip_max_norm,
            self.show_progress,
            NETWORKS + " (1/3)" * (work > 0),
            work / len(self.batches),
        )

    def pool(self, names: Collection[str], has_converged: bool) -> Pooled:
        """Pool the energy of the trained networks, and let the flow follow it.

        Args:
            names: Names of the models.
            has_converged: Whether the networks' training ended by itself.

        Raises:
            ValueError: If features of x are not finite.
            RuntimeError: If a model can't be fitted.
        """
        networks, state = self.training.pair, self.training.pooling(has_converged)
        # Following may recall a flow with another embedding, which the energy shares.
        pair = ModelPair(networks.flow, networks.energy_with_own_embedding())
        theta = ConcatenatedRows(self.simulations.theta)
        x = ConcatenatedRows(self.simulations.x)
        with shown("JNPE fits its pool (2/3)", self.show_progress):
            pool = PoolFit(pair, theta, x, *self.rows, names, self._effort, self._focus)
        emulator = pool.emulator if self._emulates else None
        if emulator is not None:
            pairs = self._emulated(emulator, pool, pair.energy, is_weighted=False)
            guide = Guide(pair.energy, pairs, True, True, EPOCHS_TO_LEARN)
            later = self._work.steps_with_pool(EPOCHS_TO_FOLLOW)
            self._follow(replace(guide, description=LEARNING), later)
        flow_loss = self.training.recall_followed()
        with shown("JNPE weighs its pool (2/3)", self.show_progress):
            pool.fit(pair)
        has_converged = self._go_on(pool, pair, state)
        to_follow = EPOCHS_TO_FOLLOW
        if self._is_followed(pool) and pool.asks_for_a_better_flow:
            to_follow -= EPOCHS_TO_REFIT
            guide = self._guide(pool, emulator, pool.provisional(pair), EPOCHS_TO_REFIT)
            later = self._work.steps_with_pool(to_follow)
            self._follow(replace(guide, description=LEARNING), later)
            flow_loss = self.training.recall_followed()
            with shown("JNPE fits its pool again (2/3)", self.show_progress):
                pool.fit(pair)
        with shown("JNPE fits its pool to all simulations (2/3)", self.show_progress):
            energy = pool.pooled(pair)
        emulated = None if emulator is None else Emulated(emulator, pool.known.features)
        if self._is_followed(pool):
            self._follow(self._guide(pool, emulator, energy, to_follow))
        loss = flow_loss - pool.gain if self.mixture is None else nan
        return Pooled(energy, pool.weights, loss, has_converged, emulated)

    def _go_on(self, pool: PoolFit, pair: ModelPair, state: Pooling) -> bool:
        """Train the networks while they have a part in the pool; return as `train`."""
        if state.loss == inf:
            state = state._replace(loss=pool.loss, goes_on=pool.lag < MAX_LAG)
        else:  # later cycles were trained before an interrupt
            self.training.load_best()
            pool.choose(pair.energy.net)
        cycles, most = self.training.cycles, self.config.max_num_epochs
        while state.goes_on and not state.has_converged and state.epoch < most:
            end = cycles.end(state.epoch)
            has_converged = self.train(end, self._work.steps(EPOCHS_TO_FOLLOW))
            pool.choose(pair.energy.net)
            goes_on = pool.share_of_networks >= MIN_SHARE
            goes_on &= pool.loss < state.loss - MIN_GAIN
            goes_on &= self.training.epoch < cycles.ends(MOST_CYCLES)
            state = state._replace(
                has_converged=has_converged,
                epoch=self.training.epoch,
                loss=pool.loss,
                goes_on=goes_on,
            )
            self.training.keep(state)
        ends_cycle = self.training.epoch == cycles.end(self.training.epoch - 1)
        return state.has_converged or (not state.goes_on and ends_cycle)

    def return_to_prior(
        self, energy: ConditionalEnergy, emulated: Emulated | None
    ) -> None:
        r"""Give an energy the prior as its base, and let the flow follow it near $x_o$.

        The flow minimises KL(energy ‖ flow), so that it loses no mode. The proposal of
        the last round is too narrow for that where it is the posterior given several
        observations. The flow then minimises KL(flow ‖ energy).

        Args:
            energy: The energy, with the mixture as its base. It is changed in place.
            emulated: What x can be emulated with; None to take x of simulations.
        """
        assert self.mixture is not None
        device = energy.loc.device
        theta, _ = self.simulations.rows_to_standardize(self.rows[0])
        inside = energy.support.inside(theta.to(device))
        energy.base = base_density(self.prior, inside, energy.support)
        energy.prior = evaluated_anywhere(self.prior)
        energy.log_prior_floor = log_prior_floor(self.prior, energy.base, inside)
        observed, latest = self.simulations.latest_x, self.mixture.latest
        if observed is not None:
            observed = observed.to(device).reshape(-1, *energy.condition_shape)
        batch_size = min(self.config.training_batch_size, MAX_BATCH_SIZE)
        if emulated is None:
            x = self.simulations.x[-1]

            def draw_x(num: int) -> Tensor:
                return x[torch.randint(len(x), (num,), device=x.device)].to(device)
        else:
            model, features = emulated
            if observed is not None:
                with torch.no_grad():
                    observed = energy.embedding_net(observed).flatten(1)

            def draw_x(num: int) -> Tensor:
                theta = latest.sample(torch.Size((num,))).to(device)
                z = energy.standardize(energy.support.inside(theta))
                return model.simulate(z, features)

        def f(theta: Tensor, x: Tensor) -> Tensor:
            return energy(theta, x, None if emulated is None else x)

        nearby = NearbyBatches(draw_x, observed, latest, f, batch_size)
        forward, embedded = observed is None or len(observed) == 1, emulated is not None
        guide = Guide(energy, nearby, forward, embedded, EPOCHS_TO_FOLLOW)
        self._follow(replace(guide, keeps_last=True))

    @property
    def _focus(self) -> Focus | None:
        """The last proposal, on which the pool concentrates, with weights; or None."""
        if self.mixture is None:
            return None
        theta = torch.cat(self.simulations.theta)
        latest = self.mixture.latest
        log_prob = latest.log_prob(theta).reshape(-1)
        weights = (log_prob - self.mixture.log_prob(theta)).exp()
        own = self.simulations.row_weights
        return Focus(latest, weights if own is None else own * weights)

    @property
    def _effort(self) -> float:
        """Factor of the steps of the pool and of the following."""
        return min(1.0, self.config.max_num_epochs / FULL_EFFORT)

    @property
    def _work(self) -> WorkAfterNetworks:
        num_simulations = sum(map(len, self.rows))
        return WorkAfterNetworks(self._effort * sqrt(num_simulations / 1000))

    @property
    def _emulates(self) -> bool:
        """Whether the flow can learn from emulated pairs.

        A flow that an earlier call kept may have learned for another embedding.
        """
        pair = self.training.pair
        return (
            self.prior is not None
            and (self.training.followed is None or not self.embedding_learns)
            and not self.simulations.is_truncated
            and pair.shares_embedding
            and pair.flow.takes_embedded
        )

    def _is_followed(self, pool: PoolFit) -> bool:
        return any(pool.weights.values()) and pool.gain > 0 and self.mixture is None

    def _guide(
        self,
        pool: PoolFit,
        emulator: Emulator | None,
        energy: ConditionalEnergy,
        num_epochs: int,
    ) -> Guide:
        """Return a pooled energy for the flow to follow, with pairs to follow it on."""
        if emulator is None:
            return Guide(energy, self.batches, False, False, num_epochs)
        forward = pool.is_emulated
        pairs = self._emulated(emulator, pool, energy, is_weighted=forward)
        batches = pairs if forward else HalfSimulatedBatches(pairs)
        return Guide(energy, batches, forward, True, num_epochs)

    def _emulated(
        self,
        emulator: Emulator,
        pool: PoolFit,
        energy: ConditionalEnergy,
        is_weighted: bool,
    ) -> EmulatedBatches:
        """Return emulated pairs, with the weights of an energy or with none."""
        base = self.mixture or self.prior
        assert base is not None
        size = min(self.config.training_batch_size, MAX_BATCH_SIZE)
        features = pool.known.features
        return EmulatedBatches(emulator, base, energy, features, is_weighted, size)

    def _follow(self, guide: Guide, later: float = 0.0) -> None:
        """Let the flow follow an energy, and say how much work comes after, in steps.

        The epochs of the guide are those with 1,000 simulations.
        """
        num_epochs = self._work.num_epochs(guide.num_epochs)
        guide = replace(guide, num_epochs=num_epochs, later=later / FOLLOWING_WORK)
        norm, shows = self.config.clip_max_norm, self.show_progress
        self.training.follow(guide, self.held_out, norm, shows)
