"""The log-ratio of the synthetic likelihood."""

from math import log

import torch
from torch import Tensor, nn
from typing_extensions import Self

from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.evidence import Evidence
from sbi_jeffreys.pool.synthetic_likelihood.ensemble import LikelihoodEnsemble
from sbi_jeffreys.pool.synthetic_likelihood.errors import ErrorModel, error_models_for
from sbi_jeffreys.pool.synthetic_likelihood.summaries import (
    dequantized,
    whitened_summaries,
)

NUM_NETWORKS = 5
"""Networks M. There are at most as many as simulations."""

ROWS_PER_BLOCK = 8192
"""Most pairs of parameters and summaries that are evaluated at a time."""


class SyntheticLikelihood(nn.Module):
    r"""The log-ratio $\log p(s(x) | \theta) - c(x)$."""

    center: Tensor
    projection: Tensor

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
        num = projection.shape[1]
        self.networks = LikelihoodEnsemble(num_networks, input_features, num, error_model)
        self.evidence = Evidence(num)

    @classmethod
    def fit(cls, candidates: Candidates, earlier: Self | None = None) -> Self:
        r"""Fit the networks to the pairs, in single precision, and c to log Z.

        Args:
            candidates: The simulations, and draws of the flow for each.
            earlier: A model whose kind of errors is taken over. If it is None, all kinds
                are tried.

        Returns:
            The model, on the device and in the precision of the candidates.
        """
        kind = candidates.theta.dtype
        candidates = Candidates(*(values.float() for values in candidates))
        theta, features = candidates.theta[0], candidates.features
        center, projection, regression = whitened_summaries(
            theta.double(), features.double()
        )
        smooth = features
        if int(projection.count_nonzero(0).max()) == 1:  # s are features, one by one
            smooth = dequantized(features)
        kinds = error_models_for(projection.shape[1])
        if earlier is not None:
            kinds = [earlier.networks.error_model]
        num_networks = min(NUM_NETWORKS, len(features))
        fits = []
        for error_model in kinds:
            model = cls(center, projection, theta.shape[1], num_networks, error_model)
            s = model.to(features).summaries(smooth)
            with torch.enable_grad():
                fits.append((model.networks.fit(theta, s, regression), model))
        _, model = min(fits, key=lambda fit: fit[0])
        model.eval().requires_grad_(False)
        log_weights = candidates.log_weights + model(candidates.theta, features)
        model.evidence.fit(model.summaries(features), log_weights[1:])
        return model.to(kind)

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
