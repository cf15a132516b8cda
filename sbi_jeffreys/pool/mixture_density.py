r"""Mixtures of Gaussians, with the number of components that has the smallest BIC.

.. math:: \log p(z) = \log \sum_k \pi_k N(z; \mu_k, L_k L_k^T)
"""

import warnings
from itertools import product
from typing import Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sbi_jeffreys.pool.regression import VARIANCE_FLOOR, covariance

MAX_COMPONENTS = 5
"""Largest number of components that is tried."""

WIDEST_OVER_MEAN = 4.0
"""Factor between the variance of the widest component and the geometric mean of all
variances, when the fit starts. The narrowest component starts as far below that mean."""


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
    def fit(cls, points: Tensor, try_independent: bool = False) -> Self:
        """Fit by maximum likelihood. The number of components has the smallest BIC.

        Args:
            points: Shape `(N, D)`, double precision, on the CPU. Their mean should be
                near zero, where the components start.
            try_independent: Whether components with diagonal covariances are tried, too.
        """
        mixture = best_mixture(points, try_independent)
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
        components = MultivariateNormal(
            self.means, scale_tril=self.scale_trils, validate_args=False
        )
        mixture = MixtureSameFamily(weights, components, validate_args=False)
        return mixture.log_prob(points)


@threadpool_limits.wrap(limits=1)  # the problems are small
def best_mixture(points: Tensor, try_independent: bool = False) -> GaussianMixture:
    """Return the mixture with the smallest BIC; see `MixtureDensity.fit`."""
    num, dim = points.shape
    overall = covariance(points)
    precisions = {"full": torch.linalg.inv(overall).numpy()}
    if try_independent:
        precisions["diag"] = (1 / overall.diagonal()).numpy()
    fits = []
    for (kind, precision), components in product(
        precisions.items(), range(1, min(MAX_COMPONENTS, num - 1) + 1)
    ):
        ratio = WIDEST_OVER_MEAN if components > 1 else 1.0
        widths = np.geomspace(1 / ratio, ratio, components)
        fit = GaussianMixture(
            components,
            covariance_type=kind,
            reg_covar=VARIANCE_FLOOR,
            max_iter=500,
            random_state=0,
            weights_init=np.full(components, 1 / components),
            means_init=np.zeros((components, dim)),
            precisions_init=np.multiply.outer(widths, precision),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fits.append(fit.fit(points.numpy()))
    return min(fits, key=lambda fit: fit.bic(points.numpy()))
