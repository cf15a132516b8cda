"""Parameters among which a model has to find the true ones of each simulation."""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.models.pair import ModelPair

MAX_CONDITIONS = 64
"""Number of x that are evaluated at a time, with all of their draws."""


LEAST_LOG_WEIGHT = -1e4
"""Lower bound on the log weights of true parameters, in nats."""


class Focus(NamedTuple):
    """The density whose posteriors matter, among those that were simulated from.

    Attributes:
        density: The density, in place of the prior.
        weights: Weights of all simulations, shape `(N,)`, which make their parameters a
            sample of it.
    """

    density: Distribution
    weights: Tensor


class Candidates(NamedTuple):
    """The true parameters of each simulation x, and draws of the flow given x.

    Attributes:
        theta: Standardised parameters, shape `(1 + K, N, D)`: the true ones of each
            simulation, followed by K draws of the flow.
        features: Features of x, shape `(N, features)`.
        log_weights: Log density of the prior minus that of the flow, in nats, shape
            `(1 + K, N)`.
        weights: Weights of the simulations, shape `(N,)`. Weighted by them, the true
            parameters are a sample of the prior.
    """

    theta: Tensor
    features: Tensor
    log_weights: Tensor
    weights: Tensor

    @classmethod
    def without_draws(cls, theta: Tensor, features: Tensor) -> Self:
        """Return pairs alone, which is enough to fit a model that needs no draws.

        Args:
            theta: Standardised parameters, shape `(N, D)`.
            features: Features of x, shape `(N, features)`.
        """
        return cls.unweighted(theta[None], features, theta.new_zeros(1, len(theta)))

    @classmethod
    def unweighted(cls, theta: Tensor, features: Tensor, log_weights: Tensor) -> Self:
        """Return candidates of simulations whose weights are one; see the attributes."""
        return cls(theta, features, log_weights, torch.ones_like(log_weights[0]))

    @classmethod
    def draw(
        cls,
        pair: ModelPair,
        theta: Tensor | ConcatenatedRows,
        x: Tensor | ConcatenatedRows,
        rows: Tensor,
        num: int,
        focus: Focus | None = None,
    ) -> Self:
        """Draw from the flow for some of the simulations.

        Args:
            pair: The flow to draw from, and the energy that standardises and embeds.
            theta: Parameters, shape `(N, D)`.
            x: Simulations, shape `(N, ...)`.
            rows: Indices of the simulations, shape `(M,)`.
            num: Draws for each of them, K. With none, the flow is not used.
            focus: The density that takes the prior's place, with weights of all
                simulations; by default the base of the energy, with none.
        """
        energy = pair.energy
        device = energy.loc.device
        prior = energy.base if focus is None else focus.density
        parts = []
        for some in rows.split(MAX_CONDITIONS):
            true, x_o = theta[some].to(device).unsqueeze(0), x[some].to(device)
            features = energy.embedding_net(x_o).flatten(1)
            if not num:
                inside = energy.standardize(energy.support.inside(true))
                parts.append((inside, features, inside.new_zeros(inside.shape[:2])))
                continue
            flow, _ = pair.given(x_o)
            draws, log_p = flow.rsample_and_log_prob(num)
            both = energy.support.inside(torch.cat([true, draws]))
            log_flow = torch.cat([flow.log_prob(true), log_p])
            log_base = prior.log_prob(both.flatten(0, 1)).reshape(log_flow.shape)
            ratio = log_base - log_flow
            # True parameters where the focus has no density have a weight of zero.
            ratio[:1].clamp_(min=LEAST_LOG_WEIGHT)
            parts.append((energy.standardize(both), features, ratio))
        thetas, features, log_weights = zip(*parts, strict=True)
        weights = torch.ones(len(rows)) if focus is None else focus.weights[rows]
        return cls(
            torch.cat(thetas, 1),
            torch.cat(features),
            torch.cat(log_weights, 1),
            (weights / weights.mean()).to(thetas[0]),
        )

    def log_ratios(self, model: nn.Module) -> Tensor:
        """Return a model's log-ratios in nats, shape `(1 + K, N)`.

        Args:
            model: Maps standardised parameters and features to log-ratios, as `Pool`
                does. The log-ratios of an ensemble are averaged.
        """
        parts = zip(
            self.theta.split(MAX_CONDITIONS, 1),
            self.features.split(MAX_CONDITIONS),
            strict=True,
        )
        return torch.cat([mean_of_members(model(theta, x)) for theta, x in parts], 1)

    def joined_with(self, more: Self) -> Self:
        """Return these and others for all N + M simulations.

        Args:
            more: Others, with at least as many draws for each. The rest of their draws
                is dropped.
        """
        rows = len(self.theta)
        return type(self)(
            torch.cat([self.theta, more.theta[:rows]], 1),
            torch.cat([self.features, more.features]),
            torch.cat([self.log_weights, more.log_weights[:rows]], 1),
            torch.cat([self.weights, more.weights]),
        )


def mean_of_members(r: Tensor) -> Tensor:
    """Return log-ratios `(sample, batch)`, averaged over members if there are any."""
    return r.mean(0) if r.ndim > 2 else r
