r"""A simulator that is linear but for its errors, fitted without training.

Summaries $s(x)$ are the parameters' linear regression on features of x, with a ridge
penalty: of those tried, the one whose leave-one-out errors have the least generalised
variance (semi-automatic summaries; Fearnhead & Prangle 2012, arXiv:1004.1112). Their
likelihood (a synthetic one; Wood 2010, Price et al. 2018) is that of

.. math:: s(x) = M \theta + m + e, \qquad e \sim \sum_k \pi_k N(\mu_k, S_k)

with M and m by least squares. Leave-one-out predictions are what they are fitted to, for
these do not know the $\theta$ that they are of. The number of components is the one of
the least BIC; a single one is all there is where everything is Gaussian. So is the
density $p(s)$ of the predictions, which makes of the likelihood a log-ratio, of Z = 1.
"""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.nn.utils import skip_init
from typing_extensions import Self

PENALTIES = 10.0 ** torch.arange(-6, 3, 0.5, dtype=torch.float64)
"""Ridge penalties tried, for each simulation, on features of unit variance."""

LEAST_VARIANCE = 1e-6
"""Added to that of errors in any direction, in units of the parameters' variance."""

MAX_COMPONENTS = 5
"""Components of the errors' distribution, at most."""

SPREAD = 4.0
"""Variances of the widest and of the narrowest component, over their geometric mean, from
which the mixture is fitted."""


class LinearModel(nn.Module):
    r"""The log-ratio $\log p(s(x) | \theta) - \log p(s(x))$."""

    def __init__(
        self,
        summaries: nn.Linear,
        slopes: nn.Linear,
        errors: "MixtureDensity",
        marginal: "MixtureDensity",
    ) -> None:
        r"""
        Args:
            summaries: From features of x to s.
            slopes: From $\theta$ to the mean of s.
            errors: Of s about its mean.
            marginal: Of s for all $\theta$.
        """
        super().__init__()
        self.summaries, self.slopes = summaries, slopes
        self.errors, self.marginal = errors, marginal

    @classmethod
    def fit(cls, theta: Tensor, features: Tensor) -> Self:
        """Fit the model as above, on the CPU in double precision.

        Args:
            theta: Parameters, standardised, shape `(N, D)`.
            features: Of x, shape `(N, features)`.

        Returns:
            The model, on the device and in the precision of `theta`.
        """
        t, features = (values.detach().cpu().double() for values in (theta, features))
        summaries, predictions = _ridge(t, features)
        design = torch.cat([t, torch.ones_like(t[:, :1])], 1)
        solution = torch.linalg.lstsq(design, predictions, driver="gelsd").solution
        model = cls(
            summaries,
            _linear(solution[:-1].T, solution[-1]),
            MixtureDensity.fit(predictions - design @ solution),
            MixtureDensity.fit(predictions),
        )
        return model.to(theta)

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Features of x, shape `(batch, features)`.
        """
        s = self.summaries(condition.flatten(1))
        return self.errors(s - self.slopes(input)) - self.marginal(s)


class MixtureDensity(nn.Module):
    r"""$\log \sum_k \pi_k N(z; \mu_k, L_k L_k^T)$."""

    logits: Tensor
    means: Tensor
    scale_trils: Tensor

    def __init__(self, logits: Tensor, means: Tensor, scale_trils: Tensor) -> None:
        r"""
        Args:
            logits: $\log \pi_k$, shape `(K,)`.
            means: $\mu_k$, shape `(K, D)`.
            scale_trils: $L_k$, lower triangular, shape `(K, D, D)`.
        """
        super().__init__()
        self.register_buffer("logits", logits)
        self.register_buffer("means", means)
        self.register_buffer("scale_trils", scale_trils)

    @classmethod
    def fit(cls, points: Tensor) -> Self:
        """Fit as many components as have the least BIC, to points, shape `(N, D)`."""
        mixture = _mixture(points)
        weights, means, covariances = (
            torch.as_tensor(values)
            for values in (mixture.weights_, mixture.means_, mixture.covariances_)
        )
        return cls(weights.log(), means, torch.linalg.cholesky(covariances))

    def forward(self, points: Tensor) -> Tensor:
        """Return log densities in nats, shape `(...)`, at points `(..., D)`."""
        weights = Categorical(logits=self.logits, validate_args=False)
        parts = MultivariateNormal(
            self.means, scale_tril=self.scale_trils, validate_args=False
        )
        mixture = MixtureSameFamily(weights, parts, validate_args=False)
        return mixture.log_prob(points)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a layer that is not trained, with a weight `(outputs, inputs)`."""
    layer = skip_init(nn.Linear, *reversed(weight.shape), dtype=weight.dtype)
    layer.requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _ridge(t: Tensor, features: Tensor) -> tuple[nn.Linear, Tensor]:
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
    return _linear(weight, mean - weight @ loc), predictions


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
