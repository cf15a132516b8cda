r"""The pool: networks averaged with simpler models of the simulator.

.. math:: r = (1 - \sum_m w_m) r_{networks} + \sum_m w_m r_m

is the log-ratio of a logarithmic opinion pool (Genest & Zidek 1986). Networks of both
parameters and data have to learn even a linear dependence from simulations, and memorise
simulations meanwhile. The models assume more about the simulator. Where the assumptions
of one hold, it needs far fewer simulations.
"""

from collections.abc import Collection, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.pool.candidates import Candidates, Focus, mean_of_members
from sbi_jeffreys.pool.emulation import Emulator
from sbi_jeffreys.pool.registry import POOL_MODELS, PoolModel
from sbi_jeffreys.pool.weights import best_weights
from sbi_jeffreys.sampling.random_state import seeded

MAX_PAIRS, MAX_NUMBERS = 10_000, 20_000_000
"""Largest number of training pairs that the models are fitted to, and of numbers in the
features of their x. At least 1,000 pairs are taken if there are as many. At most a tenth
as many held-out pairs choose the weights."""

NUM_TRAINING_DRAWS, NUM_HELD_OUT_DRAWS = 16, 256
"""Draws of the flow for each x that models are fitted to, and for each held-out x."""


LEAST_EMULATED = 0.75
"""Weight of the models that can be drawn from, from which pairs of the pooled energy are
emulated. With less, the weights of emulated pairs are too noisy."""

MAX_GAIN = 0.5
"""Gain of the pool over the flow, in nats, from which the flow is too far from the pool's
posterior for models to be fitted well to its draws."""


class Pool(nn.Module):
    """The weighted average of log-ratio networks and models of the simulator."""

    weights: Tensor

    def __init__(
        self, net: nn.Module, models: Sequence[nn.Module], weights: Sequence[float]
    ) -> None:
        """
        Args:
            net: Returns log-ratios, shape `(sample, batch)`. If it returns those of
                several members, `(member, sample, batch)`, their mean is taken.
            models: Each returns log-ratios, shape `(sample, batch)`.
            weights: Weights of the models. `net` has the rest of one.
        """
        super().__init__()
        self.net = net
        self.models = nn.ModuleList(models)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.uses_net = sum(weights) < 1.0 - 1e-6

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Embedded conditions, shape `(batch, features)`.
        """
        log_ratios = [model(input, condition) for model in self.models]
        weighted = zip(self.weights.to(input), log_ratios, strict=True)
        if not self.uses_net:
            return torch.stack([w * r for w, r in weighted]).sum(0)
        r_net = mean_of_members(self.net(input, condition))
        return r_net + sum(w * (r - r_net) for w, r in weighted)


class PoolFit:
    """Models of the simulator as fitted to the training pairs, and their weights.

    The models that can be drawn from are fitted first, without draws of the flow, which
    may learn from them before the others are fitted.

    Attributes:
        models: The models, by name.
        weights: The weights of the models, by name. The networks have the rest of one.
        lag: Nats by which the networks alone fit held-out pairs worse than the pool.
        loss: The pool's loss on held-out pairs, in nats, up to a constant.
    """

    @torch.no_grad()
    def __init__(
        self,
        pair: ModelPair,
        theta: Tensor | ConcatenatedRows,
        x: Tensor | ConcatenatedRows,
        training_rows: Tensor,
        held_out_rows: Tensor,
        names: Collection[str],
        effort: float,
        focus: Focus | None = None,
    ) -> None:
        """Fit the models that can be drawn from.

        Args:
            pair: The models in training.
            theta: Parameters, shape `(N, D)`. A few rows are gathered at a time.
            x: Simulations, shape `(N, ...)`. A few rows are gathered at a time.
            training_rows: Indices of the training pairs, at least two.
            held_out_rows: Indices of the held-out pairs, at least two.
            names: Names of the models.
            effort: Factor of the numbers of steps of the models' fits.
            focus: See `Candidates.draw`.

        Raises:
            ValueError: If features are not finite.
        """
        energy = pair.energy
        features = energy.embedding_net(x[training_rows[:1]].to(energy.loc.device))
        most = min(MAX_PAIRS, max(1000, MAX_NUMBERS // features.numel()))
        self.theta, self.x, self.effort, self.focus = theta, x, effort, focus
        self.rows = training_rows[:most], held_out_rows[: most // 10]
        self.kinds = {name: POOL_MODELS[name] for name in POOL_MODELS if name in names}
        self.known = Candidates.draw(pair, theta, x, self.rows[0], 0, focus)
        _check_finite(self.known)
        self.models: dict[str, Any] = {
            name: _fit(kind, self.known, None, effort)
            for name, kind in self.kinds.items()
            if issubclass(kind, Emulator)
        }

    @property
    def emulator(self) -> Emulator | None:
        """A model that can be drawn from, or None."""
        return next((m for m in self.models.values() if isinstance(m, Emulator)), None)

    @torch.no_grad()
    def fit(self, pair: ModelPair) -> None:
        """Fit the other models, and all c to draws of the flow. Choose the weights.

        Again, with draws of a better flow, it replaces what it fitted before.

        Args:
            pair: The flow, and the energy.

        Raises:
            ValueError: If features are not finite.
        """
        with seeded(pair.energy.loc.device, 0):
            self.known, self.held_out = (
                Candidates.draw(pair, self.theta, self.x, rows, num, self.focus)
                for rows, num in zip(
                    self.rows, (NUM_TRAINING_DRAWS, NUM_HELD_OUT_DRAWS), strict=True
                )
            )
        _check_finite(self.held_out)
        emulators = {n: m for n, m in self.models.items() if isinstance(m, Emulator)}
        for model in emulators.values():
            model.fit_evidence(self.known)
        self.models = {
            name: emulators[name]
            if name in emulators
            else _fit(kind, self.known, None, self.effort)
            for name, kind in self.kinds.items()
        }
        self.choose(pair.energy.net)

    @torch.no_grad()
    def choose(self, net: nn.Module) -> None:
        """Choose the weights of the models beside these networks."""
        choice = best_weights(net, list(self.models.values()), self.held_out)
        self.weights = dict(zip(self.models, choice.weights, strict=True))
        self.loss, self.lag = choice.loss, choice.loss_of_networks - choice.loss

    @property
    def is_emulated(self) -> bool:
        """Whether models that can be drawn from have most of the pool."""
        names = [name for name, m in self.models.items() if isinstance(m, Emulator)]
        return sum(self.weights[name] for name in names) >= LEAST_EMULATED

    @property
    def asks_for_a_better_flow(self) -> bool:
        """Whether models should be fitted again, to draws of a flow that followed."""
        return self.gain > MAX_GAIN and not self.is_emulated

    @property
    def share_of_networks(self) -> float:
        """The weight that the models leave to the networks."""
        return 1.0 - sum(self.weights.values())

    @property
    def gain(self) -> float:
        """Nats by which held-out pairs are likelier under the pool than under the flow.

        The pool is that of the models before they are fitted to these pairs, and the flow
        that from which their candidates were drawn. For K draws the loss of a flow is
        log(1 + K), as all weights are one. The gain of a pool that is much wider than the
        flow is overestimated, for the draws miss some of its mass.
        """
        return log(len(self.held_out.theta)) - self.loss

    @torch.no_grad()
    def pooled(self, pair: ModelPair) -> ConditionalEnergy:
        """Return the pooled energy, with models fitted to held-out pairs, too.

        The energy has a copy of the pair's embedding, because the flow may share that one
        and goes on to change it. It shares the log-ratio network. It is the energy of the
        pair itself if no model has a weight.

        Args:
            pair: The flow, and the energy.
        """
        everything = self.known.joined_with(self.held_out)
        models = {
            name: _fit(self.kinds[name], everything, self.models[name], self.effort)
            for name, weight in self.weights.items()
            if weight > 0
        }
        return self._pooled(pair, models)

    def provisional(self, pair: ModelPair) -> ConditionalEnergy:
        """Return the pooled energy, with models that saw no held-out pairs.

        Args:
            pair: The flow, and the energy.
        """
        return self._pooled(pair, self.models)

    def _pooled(self, pair: ModelPair, models: dict[str, Any]) -> ConditionalEnergy:
        kept = {name: weight for name, weight in self.weights.items() if weight > 0}
        if not kept:
            return pair.energy
        pooled = pair.energy_with_own_embedding()
        nets = [models[name] for name in kept]
        pooled.net = Pool(pair.energy.net, nets, list(kept.values()))
        return pooled


def _check_finite(candidates: Candidates) -> None:
    if not bool(candidates.features.isfinite().all()):
        raise ValueError("Some embedded simulations are NaN or infinite.")


def _fit(
    kind: type[PoolModel],
    candidates: Candidates,
    earlier: nn.Module | None,
    effort: float,
) -> nn.Module:
    """Fit a model with random numbers that do not depend on what was fitted before."""
    with seeded(candidates.theta.device, 0):
        return kind.fit(candidates, earlier, effort).to(candidates.theta.dtype)
