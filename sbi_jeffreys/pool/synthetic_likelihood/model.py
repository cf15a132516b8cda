"""The log-ratio of the synthetic likelihood."""

from copy import deepcopy
from math import log
from typing import Self

import torch
from torch import Tensor, nn

from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.evidence import Evidence
from sbi_jeffreys.pool.synthetic_likelihood.ensemble import LikelihoodEnsemble
from sbi_jeffreys.pool.synthetic_likelihood.errors import ErrorModel, error_models_for
from sbi_jeffreys.pool.synthetic_likelihood.folds import FoldTraining, num_steps
from sbi_jeffreys.pool.synthetic_likelihood.summaries import (
    dequantized,
    whitened_summaries,
)

NUM_NETWORKS = 5
"""Networks M. There are at most as many as simulations."""

RUNGS = (1 / 18, 1 / 9)
"""Shares of the steps after which the worse half of the kinds of errors is dropped
(successive halving, Jamieson & Talwalkar 2016, arXiv:1502.07943)."""

CONTINUED, CONTINUED_RATE = 0.25, 0.3
"""Share of the steps, and of the learning rate, where an earlier model goes on."""

ROWS_PER_BLOCK = 8192
"""Most pairs of parameters and summaries that are evaluated at a time."""


class SyntheticLikelihood(nn.Module):
    r"""The log-ratio $\log p(s(x) | \theta) - c(x)$."""

    center: Tensor
    projection: Tensor
    lift: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        center: Tensor,
        projection: Tensor,
        input_features: int,
        num_networks: int,
        error_model: ErrorModel,
    ) -> None:
        r"""
        Args:
            center: Mean of the features of x, shape `(features,)`.
            projection: Projection from features to s, shape `(features, d)`.
            input_features: Number of parameters.
            num_networks: M.
            error_model: The kind of errors of s about its location.
        """
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("projection", projection)
        self.register_buffer("lift", torch.linalg.pinv(projection))
        self.register_buffer("low", torch.full_like(center, -torch.inf))
        self.register_buffer("high", torch.full_like(center, torch.inf))
        num = projection.shape[1]
        self.networks = LikelihoodEnsemble(num_networks, input_features, num, error_model)
        self.evidence = Evidence(num)

    @classmethod
    def fit(
        cls, candidates: Candidates, earlier: Self | None = None, effort: float = 1.0
    ) -> Self:
        r"""Fit the networks to the pairs, in single precision, and c to log Z.

        Args:
            candidates: The simulations, and draws of the flow for each. Without draws, c
                stays zero.
            earlier: A model of the first of these simulations, from which the networks
                start. If it is None, all kinds of errors are tried. Those that fit
                worse are given up early.
            effort: Factor of the numbers of steps.

        Returns:
            The model, on the device and in the precision of the candidates.
        """
        kind = candidates.theta.dtype
        candidates = Candidates(*(values.float() for values in candidates))
        with torch.enable_grad():
            model = (
                cls._best_kind(candidates, effort)
                if earlier is None
                else cls._continued(candidates, earlier, effort)
            )
        model.eval().requires_grad_(False)
        model.low, model.high = candidates.features.aminmax(dim=0)
        model.fit_evidence(candidates)
        return model.to(kind)

    @classmethod
    def _best_kind(cls, candidates: Candidates, effort: float) -> Self:
        """Fit the kinds side by side, and drop the worse half twice on the way."""
        theta, features = candidates.theta[0], candidates.features
        center, projection, regression = whitened_summaries(
            theta.double(), features.double()
        )
        smooth, num = _smooth(features, projection), min(NUM_NETWORKS, len(features))
        steps = num_steps(len(features), effort)
        fits = []
        for error_model in error_models_for(projection.shape[1]):
            model = cls(center, projection, theta.shape[1], num, error_model)
            model.to(features).networks.start_at(regression)
            s = model.summaries(smooth)
            training = FoldTraining(model.networks, theta, s, candidates.weights, steps)
            fits.append((training, model))
        for share in RUNGS:
            for training, _ in fits:
                training.run(round(share * steps))
            fits.sort(key=lambda fit: fit[0].loss)
            del fits[(len(fits) + 1) // 2 :]
        training, model = fits[0]
        training.finish()
        return model

    @classmethod
    def _continued(cls, candidates: Candidates, earlier: Self, effort: float) -> Self:
        """Go on from an earlier model, with its summaries and its folds."""
        model = deepcopy(earlier).float().requires_grad_(True)
        smooth = _smooth(candidates.features, model.projection)
        theta, s = candidates.theta[0], model.summaries(smooth)
        steps = round(CONTINUED * num_steps(len(s), effort))
        weights = candidates.weights
        FoldTraining(model.networks, theta, s, weights, steps, CONTINUED_RATE).finish()
        return model

    def fit_evidence(self, candidates: Candidates) -> None:
        """Fit c to log Z, as draws of the flow estimate it; see `evidence`.

        Args:
            candidates: The simulations, and draws of the flow for each.
        """
        if len(candidates.theta) == 1:
            return
        self.evidence.forget()
        log_weights = candidates.log_weights + candidates.log_ratios(self)
        self.evidence.fit(self.summaries(candidates.features), log_weights[1:])

    def simulate(self, theta: Tensor, features: Tensor) -> Tensor:
        r"""Draw features of x given each $\theta$.

        What s leaves open of the features is taken from simulations at random.

        Args:
            theta: Standardised parameters, shape `(N, D)`.
            features: Features of x of simulations, shape `(num, features)`.

        Returns:
            Features, shape `(N, features)`, within the range of those of the simulations
            that the model was fitted to.
        """
        s = self.networks.draw(theta)
        others = features[torch.randint(len(features), (len(s),), device=s.device)]
        drawn = others + (s - self.summaries(others)) @ self.lift
        return drawn.clamp(self.low, self.high)

    def summaries(self, condition: Tensor) -> Tensor:
        """Return s, shape `(batch, d)`, of features of x, shape `(batch, ...)`."""
        return (condition.flatten(1) - self.center) @ self.projection

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Features of x, shape `(batch, features)`.
        """
        s = self.summaries(condition)
        num = self.networks.num
        rows = input.flatten(0, 1), s.expand(len(input), -1, -1).flatten(0, 1)
        parts = zip(*(values.split(ROWS_PER_BLOCK) for values in rows), strict=True)
        log_likelihood = torch.cat(
            [
                self.networks(*(values.expand(num, -1, -1) for values in some))
                .logsumexp(0)
                .sub(log(num))
                for some in parts
            ]
        )
        return log_likelihood.reshape(input.shape[:-1]) - self.evidence(s)


def _smooth(features: Tensor, projection: Tensor) -> Tensor:
    """Return features that a density can be fitted to, shape `(N, features)`."""
    are_entries = int(projection.count_nonzero(0).max()) == 1
    return dequantized(features) if are_entries else features
