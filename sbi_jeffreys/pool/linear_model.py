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

Many simulators are sparse: few entries of x depend on a parameter. Where a regression of
few coefficients, those of the least BIC along the lasso's path (Efron et al. 2004, Zou et
al. 2007), predicts simulations held out better than the one with a penalty does, M, too,
has few, chosen likewise, and errors may be independent, if that lowers BIC.
"""

import warnings
from itertools import product

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoLarsIC
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.nn.utils import skip_init
from typing_extensions import Self

PENALTIES = 10.0 ** torch.arange(-6, 3, 0.5, dtype=torch.float64)
"""Ridge penalties tried, for each simulation, on features of unit variance."""

NUM_FOLDS, LEAST_PER_FEATURE, MAX_FEATURES = 10, 2, 200
"""Folds that tell how well few coefficients predict; and the simulations for each feature
below which, and the features above which, that is not tried."""

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
        regress = _least_squares
        most = min(MAX_FEATURES, len(t) // LEAST_PER_FEATURE)
        if max(features.shape[1], NUM_FOLDS) <= most:
            sparse, by_few = _sparse_held_out(t, features)
            if _log_variance(t - by_few) < _log_variance(t - predictions):
                summaries, predictions, regress = sparse, by_few, _sparse
        slopes = regress(predictions, t)
        model = cls(
            summaries,
            slopes,
            MixtureDensity.fit(
                predictions - slopes(t), perhaps_independent=regress is _sparse
            ),
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
    def fit(cls, points: Tensor, perhaps_independent: bool = False) -> Self:
        """Fit as many components as have the least BIC.

        Args:
            points: Shape `(N, D)`.
            perhaps_independent: Whether components with diagonal covariances are tried.
        """
        mixture = _mixture(points, perhaps_independent)
        weights, means, covariances = (
            torch.as_tensor(values)
            for values in (mixture.weights_, mixture.means_, mixture.covariances_)
        )
        if mixture.covariance_type == "diag":
            covariances = covariances.diag_embed()
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


def _standardized(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs `(N, D)` of unit variance, and their means and standard deviations.

    One that does not vary, but for rounding in single precision, has an infinite one.
    """
    loc, scale = inputs.mean(0), inputs.std(0, correction=0)
    scale = torch.where(scale > 1e-6 * inputs.abs().amax(0), scale, torch.inf)
    return (inputs - loc) / scale, loc, scale


def _least_squares(outputs: Tensor, inputs: Tensor) -> nn.Linear:
    """Return the regression of outputs `(N, M)` on inputs `(N, D)`."""
    design = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
    solution = torch.linalg.lstsq(design, outputs, driver="gelsd").solution
    return _linear(solution[:-1].T, solution[-1])


def _sparse(outputs: Tensor, inputs: Tensor) -> nn.Linear:
    """Return the regression of each output on the inputs that the lasso keeps by BIC."""
    standardized, loc, scale = _standardized(inputs)
    weight = inputs.new_zeros(outputs.shape[1], len(loc))
    varies = _standardized(outputs)[2].isfinite()
    for i in varies.nonzero().flatten().tolist():
        row, output = weight[i], outputs[:, i]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            lasso = LassoLarsIC("bic").fit(standardized.numpy(), output.numpy())
        kept = torch.as_tensor(lasso.coef_).nonzero().squeeze(-1)
        few, target = standardized[:, kept], output.unsqueeze(-1)
        solution = torch.linalg.lstsq(few, target, driver="gelsd").solution
        row[kept] = solution[:, 0] / scale[kept]
    return _linear(weight, outputs.mean(0) - weight @ loc)


@threadpool_limits.wrap(limits=1)  # the problems are small
def _sparse_held_out(t: Tensor, features: Tensor) -> tuple[nn.Linear, Tensor]:
    """Return the sparse regression, and predictions of those of other folds, `(N, D)`."""
    predictions = torch.empty_like(t)
    for others, fold in KFold(NUM_FOLDS, shuffle=True, random_state=0).split(t):
        predictions[fold] = _sparse(t[others], features[others])(features[fold])
    return _sparse(t, features), predictions


def _ridge(t: Tensor, features: Tensor) -> tuple[nn.Linear, Tensor]:
    """Return the best ridge regression, and its leave-one-out predictions, `(N, D)`."""
    standardized, loc, scale = _standardized(features)
    left, values, right = torch.linalg.svd(standardized, full_matrices=False)
    mean = t.mean(0)
    projected = left.T @ (t - mean)
    best_score, best = torch.inf, (mean, mean)
    for penalty in len(t) * PENALTIES:
        kept = values.square() / (values.square() + penalty)
        leverage = (left.square() @ kept).clamp(max=1 - 1e-6).unsqueeze(-1)
        errors = (t - mean - left @ (kept.unsqueeze(-1) * projected)) / (1 - leverage)
        score = _log_variance(errors)
        if score < best_score:
            shrunk = values / (values.square() + penalty)
            weight = (right.T @ (shrunk.unsqueeze(-1) * projected)).T / scale
            best_score, best = score, (weight, t - errors)
    weight, predictions = best
    return _linear(weight, mean - weight @ loc), predictions


@threadpool_limits.wrap(limits=1)
def _mixture(errors: Tensor, perhaps_independent: bool = False) -> GaussianMixture:
    """Return the mixture of the least BIC, fitted from components of different widths."""
    num, dim = errors.shape
    covariance = _covariance(errors)
    precisions = {"full": torch.linalg.inv(covariance).numpy()}
    if perhaps_independent:
        precisions["diag"] = (1 / covariance.diagonal()).numpy()
    fits = []
    for (kind, precision), components in product(
        precisions.items(), range(1, min(MAX_COMPONENTS, num - 1) + 1)
    ):
        spread = SPREAD if components > 1 else 1.0
        widths = np.geomspace(1 / spread, spread, components)
        fit = GaussianMixture(
            components,
            covariance_type=kind,
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


def _log_variance(errors: Tensor) -> float:
    """Return the logarithm of the generalised variance of errors, shape `(N, D)`."""
    return float(torch.linalg.slogdet(_covariance(errors))[1])


def _covariance(errors: Tensor) -> Tensor:
    """Return the covariance of errors, shape `(N, D)`, never singular."""
    least = LEAST_VARIANCE * torch.eye(errors.shape[1], dtype=errors.dtype)
    return errors.T @ errors / len(errors) + least
