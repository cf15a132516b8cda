r"""A proposal that is sampled and evaluated exactly: Gaussians fitted to samples.

With u the map of the prior's support to standardised, unconstrained space,

.. math:: \tilde p(\theta) = \sum_k \pi_k N(u(\theta); \mu_k, s^2 \Sigma_k)
    \left| \frac{du}{d\theta} \right| .

The number of components has the smallest BIC. s widens them. A posterior that is too
narrow would otherwise never be simulated where it is wrong.
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
)

from sbi_jeffreys.preprocessing.support import Support, support_of
from sbi_jeffreys.sampling.random_state import seeded

MAX_COMPONENTS = 8
"""Largest number of components that is tried."""

MAX_POINTS = 3_000
"""Largest number of samples that are used."""

COVARIANCE_FLOOR = 1e-4
"""Added to the variances of components, as a fraction of the variance of all samples."""


class FittedProposal(Distribution):
    """A mixture of Gaussians in unconstrained space, as a density of the parameters.

    Attributes:
        default_x: The observation whose posterior it approximates, or None.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        prior: Distribution,
        unconstrained: Support,
        weights: Tensor,
        means: Tensor,
        scale_trils: Tensor,
        default_x: Tensor | None = None,
    ) -> None:
        """
        Args:
            prior: The prior, which has the support.
            unconstrained: The map to unconstrained space.
            weights: Weights of the components, shape `(K,)`.
            means: Their means, shape `(K, D)`.
            scale_trils: Cholesky factors of their covariances, shape `(K, D, D)`.
            default_x: The observation whose posterior this approximates.
        """
        self.prior, self.unconstrained, self.default_x = prior, unconstrained, default_x
        self._set(weights, means, scale_trils)
        super().__init__(event_shape=means.shape[1:], validate_args=False)

    def _set(self, weights: Tensor, means: Tensor, scale_trils: Tensor) -> None:
        self.components = MultivariateNormal(
            means, scale_tril=scale_trils, validate_args=False
        )
        self.mixture = MixtureSameFamily(
            Categorical(weights, validate_args=False),
            self.components,
            validate_args=False,
        )

    @classmethod
    def fit(
        cls,
        samples: Tensor,
        prior: Distribution,
        widening: float = 1.0,
        default_x: Tensor | None = None,
    ) -> Self:
        """Fit the mixture by maximum likelihood.

        Args:
            samples: Parameters inside the prior's support, shape `(N, D)`.
            prior: The prior.
            widening: Factor s of the components' standard deviations.
            default_x: The observation whose posterior was sampled.

        Raises:
            ValueError: If there are not more samples than parameters.
        """
        num, dim = samples.shape
        if num <= dim:
            raise ValueError(f"Expected more than {dim} samples, got {num}.")
        chosen = samples[torch.linspace(0, num - 1, min(num, MAX_POINTS)).long()].cpu()
        unconstrained = support_of(prior, chosen)
        u = unconstrained(chosen)[0].double()
        mean, root = u.mean(0), _root_of_covariance(u)
        fit = _best_mixture(
            torch.linalg.solve_triangular(root, (u - mean).T, upper=False)
        )
        covariances = torch.as_tensor(fit.covariances_) * widening**2
        device, kind = samples.device, samples.dtype
        return cls(
            prior,
            unconstrained.to(device),
            torch.as_tensor(fit.weights_).to(device, kind),
            (torch.as_tensor(fit.means_) @ root.T + mean).to(device, kind),
            (root @ torch.linalg.cholesky(covariances)).to(device, kind),
            default_x,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `from_arrays` needs, as arrays by name.

        They are the arguments of the constructor, and `loc` and `scale`, shape `(D,)`,
        of the map to unconstrained space.
        """
        tensors = {
            "weights": self.mixture.mixture_distribution.probs,
            "means": self.components.loc,
            "scale_trils": self.components.scale_tril,
            "loc": self.unconstrained.loc,
            "scale": self.unconstrained.scale,
        }
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        prior: Distribution,
        default_x: Tensor | None = None,
    ) -> Self:
        """Return the density that `arrays` was called on.

        Args:
            arrays: Arrays by name.
            prior: The same prior.
            default_x: The observation whose posterior it approximates.
        """
        names = ("weights", "means", "scale_trils", "loc", "scale")
        with seeded(torch.device("cpu"), 0):
            unconstrained = support_of(prior, prior.sample(torch.Size((2,))))
        weights, means, scale_trils, loc, scale = (
            torch.as_tensor(arrays[name], device=unconstrained.loc.device)
            for name in names
        )
        unconstrained.loc.copy_(loc)
        unconstrained.scale.copy_(scale)
        return cls(prior, unconstrained, weights, means, scale_trils, default_x)

    @property
    def support(self) -> Any:
        """The prior's support."""
        return self.prior.support

    def to(self, device: torch.device | str) -> None:
        """Move the prior and the mixture to a device."""
        self.prior = move_distribution_to_device(self.prior, device)
        self.unconstrained.to(device)
        weights, parts = self.mixture.mixture_distribution.probs, self.components
        self._set(weights.to(device), parts.loc.to(device), parts.scale_tril.to(device))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return samples, shape `(*sample_shape, D)`, inside of the prior's bounds."""
        drawn = self.mixture.sample(torch.Size(sample_shape))
        return self.unconstrained.inside(self.unconstrained.inverse(drawn)[0])

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities in nats, shape `(...)`, of parameters `(..., D)`."""
        u, log_det = self.unconstrained(self.unconstrained.inside(value))
        log_prob = self.mixture.log_prob(u) + log_det
        return torch.where(self.unconstrained.is_outside(value), -torch.inf, log_prob)


def _root_of_covariance(u: Tensor) -> Tensor:
    """Return the Cholesky factor of the covariance of `u`, `(N, D)`."""
    covariance = torch.atleast_2d(torch.cov(u.T))
    floor = COVARIANCE_FLOOR * covariance.diagonal().mean() + 1e-12
    return torch.linalg.cholesky(covariance + floor * torch.eye(len(covariance)).to(u))


@threadpool_limits.wrap(limits=1)  # the problems are small
def _best_mixture(whitened: Tensor) -> GaussianMixture:
    """Return the mixture with the smallest BIC of whitened points, `(D, N)`."""
    points = whitened.T.numpy()
    most = min(MAX_COMPONENTS, max(1, len(points) // (10 * points.shape[1])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fits = [
            GaussianMixture(
                num, reg_covar=COVARIANCE_FLOOR, max_iter=300, random_state=0
            ).fit(points)
            for num in range(1, most + 1)
        ]
    return min(fits, key=lambda fit: fit.bic(points))
