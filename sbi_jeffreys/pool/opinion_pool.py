r"""The energy that is kept: networks pooled with three simpler models of the simulator.

.. math:: f = (1 - \sum_m w_m) f_{networks} + \sum_m w_m f_m

is a logarithmic opinion pool (Genest & Zidek 1986), of networks, a `LinearModel`, an
`ExponentialFamily` and a `SyntheticLikelihood`. Networks of parameters and data have to
learn even a linear dependence, and memorise simulations meanwhile; the others assume
more, and where one is right it is hard to beat. The weights are those of the least
held-out loss, but zero unless they gain more than a standard error of that gain, by
Student's distribution if pairs are few. (They are the best of 1,771 that are tried: three
models that know nothing have some weight in one trial of ten with 100 held-out pairs, and
in one of six with ten; a test counts them.)
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import torch
from scipy.stats import norm, t
from torch import Tensor, nn

from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.pool.exponential_family import ExponentialFamily
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.synthetic_likelihood import SyntheticLikelihood
from sbi_jeffreys.sampling.random_state import seeded

MAX_PAIRS, MAX_NUMBERS = 10_000, 20_000_000
"""Training pairs that simpler models are fitted to, at most, and numbers in the features
of their x, but 1,000 pairs at least; a tenth as many held-out ones choose weights."""

STEPS = 20
"""Weights that are tried are multiples of one over this, with a sum of at most one."""

NUM_TRAINING_DRAWS = 32
"""Draws of the flow for each x that simpler models are fitted to."""

NUM_DRAWS = 256
"""Draws of the flow for each held-out x."""

CHUNK = 64
"""The x that are looked at together, with their draws."""


class Weights(NamedTuple):
    """Of the simpler models in the pool; what remains of one is the networks'."""

    linear_model: float = 0.0
    exponential_family: float = 0.0
    synthetic_likelihood: float = 0.0


class Pool(nn.Module):
    """A log-ratio network, or several, and simpler models: their weighted average."""

    weights: Tensor

    def __init__(
        self, net: nn.Module, models: Sequence[nn.Module], weights: Sequence[float]
    ) -> None:
        """
        Args:
            net: Returns `(sample, batch)`, or of several members `(member, sample,
                batch)`, of which the mean is taken.
            models: Each returns `(sample, batch)`.
            weights: Of these; what remains of one is that of `net`.
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
        r = _mean(self.net(input, condition))
        gains = [model(input, condition) - r for model in self.models]
        return r + sum(w * g for w, g in zip(self.weights.to(r), gains, strict=True))


class Candidates(NamedTuple):
    """For each x the parameters that belong to it, and draws of the flow given x.

    Attributes:
        theta: Standardised, shape `(1 + K, N, D)`; the draws come after the true ones.
        features: Of x, shape `(N, features)`.
        log_weights: Log density of the prior less that of the flow, `(1 + K, N)`.
    """

    theta: Tensor
    features: Tensor
    log_weights: Tensor

    def log_ratios(self, net: nn.Module) -> Tensor:
        """Return what a log-ratio network gives, the mean of members, `(1 + K, N)`."""
        parts = zip(self.theta.split(CHUNK, 1), self.features.split(CHUNK), strict=True)
        return torch.cat([_mean(net(theta, x)) for theta, x in parts], 1)

    def and_as_many_of(self, more: "Candidates") -> "Candidates":
        """Return these and others, of which there may be more draws, for all N + M x."""
        rows = len(self.theta)
        return Candidates(
            torch.cat([self.theta, more.theta[:rows]], 1),
            torch.cat([self.features, more.features]),
            torch.cat([self.log_weights, more.log_weights[:rows]], 1),
        )


Fit: TypeAlias = Callable[[Candidates, Any], nn.Module]
FITS: tuple[Fit, ...] = (
    lambda some, _: LinearModel.fit(some.theta[0], some.features),
    lambda some, _: ExponentialFamily.fit(*some),
    lambda some, earlier: SyntheticLikelihood.fit(*some, like=earlier),
)
"""Of the simpler models, in the order of their `Weights`: to pairs, given the same model
of fewer pairs, or None."""


@torch.no_grad()
def fit_pool(
    pair: ModelPair,
    theta: Tensor | ConcatenatedRows,
    x: Tensor | ConcatenatedRows,
    training: Tensor,
    validation: Tensor,
) -> tuple[ConditionalEnergy, Weights]:
    """Return the energy pooled with simpler models, and the weights of those.

    Weights are chosen with the models fitted to the training pairs; then those with a
    weight are fitted to all. The pool shares the energy's log-ratio network, and has an
    embedding of its own, for the energy's may be the flow's. The energy is returned as it
    is with weights of zero, or with fewer than two training pairs or two held-out ones.

    Args:
        pair: The trained models.
        theta: Parameters, shape `(N, D)`, of which a few rows are gathered at a time.
        x: Simulations, shape `(N, ...)`, likewise.
        training: Rows of the training pairs.
        validation: Rows of the held-out ones.

    Raises:
        ValueError: If features are not finite.
    """
    energy, none = pair.energy, Weights()
    if min(len(training), len(validation)) < 2:
        return energy, none
    features = energy.embedding_net(x[training[:1]].to(energy.loc.device))
    most = min(MAX_PAIRS, max(1000, MAX_NUMBERS // features.numel()))
    with seeded(energy.loc.device, 0):
        known = _candidates(pair, theta, x, training[:most], NUM_TRAINING_DRAWS)
        held_out = _candidates(pair, theta, x, validation[: most // 10], NUM_DRAWS)
    everything = known.and_as_many_of(held_out)
    if not bool(everything.features.isfinite().all()):
        raise ValueError("Some embedded simulations are NaN or infinite.")
    models = [_fitted(fit, known) for fit in FITS]
    weights = _best_weights(energy.net, models, held_out)
    if weights == none:
        return energy, none
    kept = [
        (_fitted(fit, everything, model), weight)
        for fit, model, weight in zip(FITS, models, weights, strict=True)
        if weight > 0
    ]
    pool = pair.energy_with_own_embedding()
    pool.net = Pool(energy.net, *zip(*kept, strict=True))
    return pool, weights


def _fitted(
    fit: Fit, candidates: Candidates, earlier: nn.Module | None = None
) -> nn.Module:
    """Fit a model with random numbers that do not depend on what was fitted before."""
    with seeded(candidates.theta.device, 0):
        return fit(candidates, earlier)


def _candidates(
    pair: ModelPair,
    theta: Tensor | ConcatenatedRows,
    x: Tensor | ConcatenatedRows,
    rows: Tensor,
    num: int,
) -> Candidates:
    """Draw `num` times from the flow for each of the pairs at `rows`."""
    energy = pair.energy
    device = energy.loc.device
    parts = []
    for some in rows.split(CHUNK):
        true, x_o = theta[some].to(device).unsqueeze(0), x[some].to(device)
        flow, _ = pair.given(x_o)
        draws, log_p = flow.rsample_and_log_prob(num)
        both = energy.support.inside(torch.cat([true, draws]))
        log_flow = torch.cat([flow.log_prob(true), log_p])
        log_base = energy.base.log_prob(both.flatten(0, 1)).reshape(log_flow.shape)
        features = energy.embedding_net(x_o).flatten(1)
        parts.append((energy.standardize(both), features, log_base - log_flow))
    thetas, features, log_weights = zip(*parts, strict=True)
    return Candidates(
        torch.cat(thetas, 1), torch.cat(features), torch.cat(log_weights, 1)
    )


def _best_weights(
    net: nn.Module, models: Sequence[nn.Module], held_out: Candidates
) -> Weights:
    r"""Return the weights that tell held-out parameters best from draws of the flow.

    The loss is $-\log \frac{w(\theta)}{w(\theta) + \sum_k w(\theta_k)}$ with importance
    weights w of the energy against the flow. It is bounded below; that with a log Z from
    draws alone is not, and rewards an energy that has its mass where the flow has none.
    """
    r = held_out.log_ratios(net)
    log_weights = held_out.log_weights + r
    finite = log_weights.isfinite()
    gains = []
    for model in models:
        gain = torch.where(finite, held_out.log_ratios(model) - r, 0.0)
        gains.append(gain if bool(gain.isfinite().all()) else torch.zeros_like(gain))
    shares = range(STEPS + 1)
    grid = [
        Weights(*(share / STEPS for share in some))
        for some in product(shares, repeat=len(models))
        if sum(some) <= STEPS
    ]
    losses = torch.stack(
        [-_pooled(log_weights, gains, weights).log_softmax(0)[0] for weights in grid]
    )
    best = int(losses.mean(1).nan_to_num(torch.inf).argmin())
    gain = losses[0] - losses[best]
    standard_errors = float(t.ppf(norm.cdf(1.0), df=len(gain) - 1))
    is_visible = bool(gain.mean() > standard_errors * gain.std() / len(gain) ** 0.5)
    return grid[best] if is_visible else grid[0]


def _pooled(r: Tensor, gains: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    for gain, weight in zip(gains, weights, strict=True):
        r = torch.add(r, gain, alpha=weight)
    return r


def _mean(r: Tensor) -> Tensor:
    """Return the mean over members, if there are any, of log-ratios."""
    return r.mean(0) if r.ndim > 2 else r
