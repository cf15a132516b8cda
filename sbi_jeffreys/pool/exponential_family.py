r"""An exponential family whose statistics are linear in features of x.

.. math:: r(\theta, x) = \theta^T \eta(x) - \psi(\theta) - c(x), \qquad \eta(x) = A s + a

with s the features of x, is the exact log-ratio if
$p(x | \theta) = h(x) \exp(\theta^T T(x) - \psi(\theta))$ and T is linear in s. Examples
are counts or spikes of a generalised linear model with the canonical link, and Gaussian
errors of known size. Networks of both $\theta$ and x then need only learn $\psi$, a
function of $\theta$ alone. It is convex, as a cumulant generating function. The model

.. math:: \psi(\theta) = |L \theta|^2 + \sum_j c_j^2 \log(1 + e^{b_j^T \theta + d_j})

is convex, too: it is an input convex network of one layer (Amos et al. 2017,
arXiv:1609.07152). Posteriors of a log-concave prior are therefore log-concave. The model
has so few parameters that a quasi-Newton method fits them to all pairs together.
"""

from math import sqrt
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.evidence import Evidence
from sbi_jeffreys.preprocessing.scaling import varies

NUM_TERMS = 64
"""Terms of the sum in psi."""

NATURAL_SCALE = 7.0
"""Prior standard deviation of a natural parameter, an entry of A s. All features are
divided by one number first, after which the largest variance of a feature is one."""

WEIGHT_SCALE = 5.0
"""Prior standard deviation of each weight of psi."""

MAX_ITERATIONS = 150
"""Largest number of iterations of L-BFGS."""

TOLERANCE = 1e-4
"""L-BFGS has converged when an iteration changes the loss by less than this, in nats."""


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
        self.hidden = nn.Linear(input_features, NUM_TERMS)
        self.root_output = nn.Parameter(torch.full((NUM_TERMS,), 0.1))
        self.evidence = Evidence(input_features)
        nn.init.normal_(self.hidden.weight, std=1 / sqrt(input_features))
        nn.init.zeros_(self.natural.weight)
        nn.init.zeros_(self.natural.bias)

    @classmethod
    def fit(
        cls, candidates: Candidates, earlier: Self | None = None, effort: float = 1.0
    ) -> Self:
        r"""Fit the model in double precision.

        The loss is $-\log \frac{w(\theta_0)}{\sum_k w(\theta_k)}$, with importance
        weights $w(\theta) = p(\theta) e^{r(\theta, x)} / p_\phi(\theta | x)$ of the true
        parameters $\theta_0$ and of draws $\theta_k$ of the flow. Gaussian priors of the
        weights of the model are added as penalties. Then c is fitted to estimates of log
        Z from the same draws, by least squares on $\eta$ and its squares, so that Z is
        about 1.

        Args:
            candidates: The simulations, and draws of the flow for each.
            earlier: A model to start from.
            effort: Factor of the number of iterations.

        Returns:
            The model, on the device and in the precision of the candidates.
        """
        kind = candidates.theta.dtype
        theta, features, log_weights, shares = (v.double() for v in candidates)
        num, dim = features.shape
        unit = torch.where(varies(features), features.std(0, correction=0), 0.0).max()
        unit = torch.where(unit > 0, unit, 1.0)
        scaled = features / unit
        model = cls(theta.shape[-1], dim).to(theta)
        if earlier is not None:
            with torch.no_grad():
                model.load_state_dict(earlier.state_dict())
                model.natural.weight *= unit
                model.evidence.forget()
        rest = [model.root, *model.hidden.parameters(), model.root_output]
        optimizer = torch.optim.LBFGS(
            [*model.natural.parameters(), *rest],
            max_iter=max(1, round(effort * MAX_ITERATIONS)),
            history_size=20,
            tolerance_change=TOLERANCE,
            line_search_fn="strong_wolfe",
        )

        def penalised_loss() -> Tensor:
            optimizer.zero_grad()
            log_posterior = (log_weights + model(theta, scaled)).log_softmax(0)
            penalty = model.natural.weight.square().sum() * dim / NATURAL_SCALE**2
            for weights in rest:
                penalty = penalty + weights.square().sum() / WEIGHT_SCALE**2
            loss = -(shares * log_posterior[0]).mean() + penalty / (2 * num)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(penalised_loss)
        model.requires_grad_(False)
        model.natural.weight /= unit
        log_weights = log_weights + model(theta, features)
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
