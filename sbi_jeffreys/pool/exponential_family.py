r"""A simulator that is an exponential family with statistics linear in features of x.

.. math:: r(\theta, x) = \theta^T \eta(x) - \psi(\theta) - c(x), \qquad \eta(x) = A s + a

with s the features, is all there is where
$p(x | \theta) = h(x) \exp(\theta^T T(x) - \psi(\theta))$ and T is linear in s: counts or
spikes of a generalised linear model with the canonical link, Gaussian errors of known
size. What networks of both $\theta$ and x have to learn is then a function $\psi$ of
$\theta$ alone, and a convex one, being a cumulant generating function. So is

.. math:: \psi(\theta) = |L \theta|^2 + \sum_j c_j^2 \log(1 + e^{b_j^T \theta + d_j})

(an input convex network of one layer; Amos et al. 2017, arXiv:1609.07152), and posteriors
of a log-concave prior are log-concave. The parameters are few enough to be fitted to all
pairs together, by a quasi-Newton method.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from typing_extensions import Self

from sbi_jeffreys.pool.evidence import Evidence

HIDDEN_FEATURES = 64
"""Terms of the sum in psi."""

NATURAL_SCALE = 7.0
"""Standard deviation, a priori, of a natural parameter: of A s for s of unit variance.
That is meant of the entry of largest variance, whatever it is."""

WEIGHT_SCALE = 5.0
"""Likewise, of each weight of psi."""

MAX_ITERATIONS = 300
"""Of L-BFGS."""

TOLERANCE = 1e-4
"""Change of the loss, in nats, with which it counts as converged."""


class ExponentialFamily(nn.Module):
    r"""The log-ratio $\theta^T \eta(x) - \psi(\theta) - c(x)$."""

    def __init__(self, input_features: int, condition_features: int) -> None:
        r"""
        Args:
            input_features: Number of parameters.
            condition_features: Number of features of x.
        """
        super().__init__()
        self.natural = nn.Linear(condition_features, input_features)
        self.root = nn.Parameter(0.1 * torch.eye(input_features))
        self.hidden = nn.Linear(input_features, HIDDEN_FEATURES)
        self.root_output = nn.Parameter(torch.full((HIDDEN_FEATURES,), 0.1))
        self.evidence = Evidence(input_features)
        nn.init.normal_(self.hidden.weight, std=1 / sqrt(input_features))
        nn.init.zeros_(self.natural.weight)
        nn.init.zeros_(self.natural.bias)

    @classmethod
    def fit(cls, candidates: Tensor, features: Tensor, log_weights: Tensor) -> Self:
        r"""Fit, in double precision, what tells parameters from draws of a proposal.

        The loss is $-\log \frac{w(\theta_0)}{\sum_k w(\theta_k)}$ with
        $w(\theta) = p(\theta) e^{r(\theta, x)} / proposal(\theta | x)$, penalised by
        Gaussian priors of the weights. Then c is fitted to log Z, estimated from the
        same draws, by least squares on $\eta$ and its squares, so that Z is about 1.

        Args:
            candidates: Standardised parameters, shape `(1 + K, N, D)`: those of each
                pair, then K draws of the proposal given its x.
            features: Of x, shape `(N, features)`.
            log_weights: $\log p - \log proposal$ in nats, shape `(1 + K, N)`.

        Returns:
            The model, on the device and in the precision of `candidates`.
        """
        kind = candidates.dtype
        candidates, features, log_weights = (
            values.double() for values in (candidates, features, log_weights)
        )
        num, dim = features.shape
        unit = features.std(0, correction=0).max()
        unit = torch.where(unit > 1e-6 * features.abs().max(), unit, 1.0)
        scaled = features / unit
        model = cls(candidates.shape[-1], dim).to(candidates)
        rest = [model.root, *model.hidden.parameters(), model.root_output]
        optimizer = torch.optim.LBFGS(
            [*model.natural.parameters(), *rest],
            max_iter=MAX_ITERATIONS,
            history_size=20,
            tolerance_change=TOLERANCE,
            line_search_fn="strong_wolfe",
        )

        def penalised_loss() -> Tensor:
            optimizer.zero_grad()
            log_posterior = (log_weights + model(candidates, scaled)).log_softmax(0)
            penalty = model.natural.weight.square().sum() * dim / NATURAL_SCALE**2
            for weights in rest:
                penalty = penalty + weights.square().sum() / WEIGHT_SCALE**2
            loss = -log_posterior[0].mean() + penalty / (2 * num)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(penalised_loss)
        model.requires_grad_(False)
        model.natural.weight /= unit
        log_weights = log_weights + model(candidates, features)
        model.evidence.fit(model.natural(features), log_weights[1:])
        return model.to(kind)

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Features of x, shape `(batch, features)`.
        """
        eta = self.natural(condition.flatten(1))
        sums = softplus(self.hidden(input)) @ self.root_output.square()
        psi = (input @ self.root.T).square().sum(-1) + sums
        return (input * eta).sum(-1) - psi - self.evidence(eta)
