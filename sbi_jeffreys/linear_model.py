r"""A simulator that is linear but for its errors, fitted without training.

Summaries $s(x)$ are the parameters' linear regression on features of x, with a ridge
penalty: of those tried, the one whose leave-one-out errors have the least generalised
variance (semi-automatic summaries; Fearnhead & Prangle 2012, arXiv:1004.1112). Their
likelihood (a synthetic one; Wood 2010, Price et al. 2018) is that of

.. math:: s(x) = M \theta + m + e, \qquad e \sim \sum_k \pi_k N(\mu_k, S_k)

with M and m by least squares. Leave-one-out predictions are what they are fitted to, for
these do not know the $\theta$ that they are of. The number of components is the one of
the least BIC; a single one is all there is where everything is Gaussian.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from typing_extensions import Self

PENALTIES = 10.0 ** torch.arange(-6, 3, 0.5, dtype=torch.float64)
"""Ridge penalties tried, for each simulation, on features of unit variance."""

LEAST_VARIANCE = 1e-6
"""Added to that of errors in any direction, in units of the parameters' variance."""

MAX_NUMBERS = 2 * 10**7
"""Simulations times features that are looked at, or all of 1,000 simulations."""

MAX_COMPONENTS = 5
"""Components of the errors' distribution, at most."""

SPREAD = 4.0
"""Variances of the widest and of the narrowest component, over their geometric mean, from
which the mixture is fitted."""


class LinearModel(nn.Module):
    r"""$\log p(s(x) | \theta)$, a log-ratio up to a function of x."""

    from_features: Tensor
    from_theta: Tensor
    offset: Tensor
    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(
        self, summaries: "Linear", slopes: "Linear", errors: GaussianMixture, like: Tensor
    ) -> None:
        r"""
        Args:
            summaries: From features of x to s.
            slopes: From $\theta$ to the mean of s.
            errors: The fitted distribution of what remains.
            like: A tensor of the precision, and on the device, to use.
        """
        super().__init__()
        weights, means, factors = (
            torch.as_tensor(values)
            for values in (
                np.log(errors.weights_),
                errors.means_,
                errors.precisions_cholesky_,
            )
        )
        log_scales = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        for name, value in {
            "from_features": summaries.weight,
            "from_theta": slopes.weight,
            "offset": summaries.bias - slopes.bias,
            "log_weights": weights + log_scales,
            "means": means,
            "factors": factors,
        }.items():
            self.register_buffer(name, value.to(like))

    @classmethod
    def fit(cls, theta: Tensor, features: Tensor) -> Self:
        """Fit the model as above, on the CPU in double precision.

        Args:
            theta: Parameters, standardised, shape `(N, D)`.
            features: Of x, shape `(N, features)`.

        Returns:
            The model, on the device and in the precision of `theta`.
        """
        size = max(1000, MAX_NUMBERS // features.shape[1])
        t, features = (
            values[:size].detach().cpu().double() for values in (theta, features)
        )
        summaries, predictions = _ridge(t, features)
        design = torch.cat([t, torch.ones_like(t[:, :1])], 1)
        solution = torch.linalg.lstsq(design, predictions, driver="gelsd").solution
        slopes = Linear(solution[:-1].T, solution[-1])
        errors = _mixture(predictions - design @ solution)
        return cls(summaries, slopes, errors, theta)

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Features of x, shape `(batch, features)`.
        """
        errors = condition.flatten(1) @ self.from_features.T + self.offset
        errors = errors - input @ self.from_theta.T
        log_parts = [
            log_weight - ((errors - mean) @ factor).square().sum(-1) / 2
            for log_weight, mean, factor in zip(
                self.log_weights, self.means, self.factors, strict=True
            )
        ]
        return torch.stack(log_parts).logsumexp(0)


class Linear(NamedTuple):
    """A linear function, with a weight of shape `(outputs, inputs)` and a bias."""

    weight: Tensor
    bias: Tensor


def _ridge(t: Tensor, features: Tensor) -> tuple[Linear, Tensor]:
    """Return the best ridge regression, and its leave-one-out predictions, `(N, D)`."""
    loc, scale = features.mean(0), features.std(0, correction=0)
    varies = scale > 1e-6 * (1 + features.abs().amax(0))
    scale = torch.where(varies, scale, torch.inf)
    left, values, right = torch.linalg.svd((features - loc) / scale, full_matrices=False)
    mean = t.mean(0)
    projected = left.T @ (t - mean)
    best_score, best = torch.inf, (mean, mean)
    for penalty in len(t) * PENALTIES:
        kept = values.square() / (values.square() + penalty)
        leverage = (left.square() @ kept).clamp(max=1 - 1e-6).unsqueeze(-1)
        errors = (t - mean - left @ (kept.unsqueeze(-1) * projected)) / (1 - leverage)
        score = float(torch.linalg.slogdet(_covariance(errors))[1])
        if score < best_score:
            shrunk = values / (values.square() + penalty)
            weight = (right.T @ (shrunk.unsqueeze(-1) * projected)).T / scale
            best_score, best = score, (weight, t - errors)
    weight, predictions = best
    return Linear(weight, mean - weight @ loc), predictions


def _mixture(errors: Tensor) -> GaussianMixture:
    """Return the mixture of the least BIC, fitted from components of different widths."""
    num, dim = errors.shape
    precision = torch.linalg.inv(_covariance(errors)).numpy()
    fits = []
    for components in range(1, min(MAX_COMPONENTS, num - 1) + 1):
        spread = SPREAD if components > 1 else 1.0
        widths = np.geomspace(1 / spread, spread, components)
        fit = GaussianMixture(
            components,
            reg_covar=LEAST_VARIANCE,
            max_iter=500,
            random_state=0,
            weights_init=np.full(components, 1 / components),
            means_init=np.zeros((components, dim)),
            precisions_init=np.multiply.outer(widths, precision),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fits.append(fit.fit(errors.numpy()))
    return min(fits, key=lambda fit: fit.bic(errors.numpy()))


def _covariance(errors: Tensor) -> Tensor:
    """Return the covariance of errors, shape `(N, D)`, never singular."""
    least = LEAST_VARIANCE * torch.eye(errors.shape[1], dtype=errors.dtype)
    return errors.T @ errors / len(errors) + least
