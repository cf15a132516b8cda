r"""The pool: networks averaged with simpler models of the simulator.

.. math:: r = (1 - \sum_m w_m) r_{networks} + \sum_m w_m r_m

is the log-ratio of a logarithmic opinion pool (Genest & Zidek 1986). Networks of both
parameters and data have to learn even a linear dependence from simulations, and memorise
simulations meanwhile. The models assume more about the simulator. Where the assumptions
of one hold, it needs far fewer simulations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.pool.candidates import Candidates, mean_of_members
from sbi_jeffreys.pool.registry import POOL_MODELS, PoolModel
from sbi_jeffreys.pool.weights import best_weights
from sbi_jeffreys.sampling.random_state import seeded

MAX_PAIRS, MAX_NUMBERS = 10_000, 20_000_000
"""Largest number of training pairs that the models are fitted to, and of numbers in the
features of their x. At least 1,000 pairs are taken if there are as many. At most a tenth
as many held-out pairs choose the weights."""

NUM_TRAINING_DRAWS, NUM_HELD_OUT_DRAWS = 32, 256
"""Draws of the flow for each x that models are fitted to, and for each held-out x."""


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
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Embedded conditions, shape `(batch, features)`.
        """
        r = mean_of_members(self.net(input, condition))
        gains = [model(input, condition) - r for model in self.models]
        return r + sum(w * g for w, g in zip(self.weights.to(r), gains, strict=True))


@torch.no_grad()
def fit_pool(
    pair: ModelPair,
    theta: Tensor | ConcatenatedRows,
    x: Tensor | ConcatenatedRows,
    training_rows: Tensor,
    held_out_rows: Tensor,
) -> tuple[ConditionalEnergy, dict[str, float]]:
    """Return the energy pooled with the models of `POOL_MODELS`, and their weights.

    The models are fitted to the training pairs, and held-out pairs choose their weights.
    Then each model with a weight is fitted to all pairs. The pool shares the energy's
    log-ratio network. It has a copy of the energy's embedding, because the flow may share
    that one and goes on to change it.

    Args:
        pair: The trained models.
        theta: Parameters, shape `(N, D)`. A few rows are gathered at a time.
        x: Simulations, shape `(N, ...)`. A few rows are gathered at a time.
        training_rows: Indices of the training pairs.
        held_out_rows: Indices of the held-out pairs.

    Returns:
        The energy, and the weight of each model by its name. The energy is that of `pair`
        itself if all weights are zero, or if there are fewer than two training pairs or
        fewer than two held-out pairs.

    Raises:
        ValueError: If features are not finite.
    """
    energy, none = pair.energy, dict.fromkeys(POOL_MODELS, 0.0)
    if min(len(training_rows), len(held_out_rows)) < 2:
        return energy, none
    features = energy.embedding_net(x[training_rows[:1]].to(energy.loc.device))
    most = min(MAX_PAIRS, max(1000, MAX_NUMBERS // features.numel()))
    training_rows, held_out_rows = training_rows[:most], held_out_rows[: most // 10]
    with seeded(energy.loc.device, 0):
        known = Candidates.draw(pair, theta, x, training_rows, NUM_TRAINING_DRAWS)
        held_out = Candidates.draw(pair, theta, x, held_out_rows, NUM_HELD_OUT_DRAWS)
    everything = known.joined_with(held_out)
    if not bool(everything.features.isfinite().all()):
        raise ValueError("Some embedded simulations are NaN or infinite.")
    fitted = {name: _fit(kind, known) for name, kind in POOL_MODELS.items()}
    chosen = best_weights(energy.net, list(fitted.values()), held_out)
    weights = dict(zip(fitted, chosen, strict=True))
    if not any(chosen):
        return energy, none
    kept = {name: weight for name, weight in weights.items() if weight > 0}
    models = [_fit(POOL_MODELS[name], everything, fitted[name]) for name in kept]
    pooled = pair.energy_with_own_embedding()
    pooled.net = Pool(energy.net, models, list(kept.values()))
    return pooled, weights


def _fit(
    kind: type[PoolModel], candidates: Candidates, earlier: nn.Module | None = None
) -> nn.Module:
    """Fit a model with random numbers that do not depend on what was fitted before."""
    with seeded(candidates.theta.device, 0):
        return kind.fit(candidates, earlier)
