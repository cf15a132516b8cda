"""The energy as a potential of sbi."""

import torch
from sbi.inference.potentials.base_potential import BasePotential
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils.sbiutils import within_support
from sbi.utils.torchutils import ensure_theta_batched
from torch import Tensor
from torch.distributions import Distribution
from typing_extensions import Self

from sbi_jeffreys.models.energy import ConditionalEnergy

ROWS_AT_ONCE = 50_000
"""Pairs of parameters and observations evaluated together, gradients aside."""


class EnergyPotential(BasePotential):
    r"""$f(\theta, x_o)$, an unnormalised log posterior, in nats.

    Given several observations, independent given the parameters, log-ratios add up and
    the prior counts once:

    .. math:: \log p(\theta) + \sum_{i=1}^n r(\theta, x_i)
        = \sum_{i=1}^n f(\theta, x_i) - (n - 1) \log p(\theta).

    Minus infinity outside of the prior.
    """

    def __init__(
        self,
        energy: ConditionalEnergy,
        prior: Distribution,
        x_o: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            energy: f.
            prior: Its support bounds the potential. The prior that counts, for several
                observations, is the one that the energy was trained with.
            x_o: Observations, shape `(n, *condition_shape)`.
            device: Where to evaluate.
        """
        self.energy = energy.eval()
        super().__init__(prior, x_o, device)

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:
        """Set the observations.

        Args:
            x_o: Shape `(n, *condition_shape)`.
            x_is_iid: Whether they are several observations of the same parameters;
                otherwise the i-th belongs to the i-th parameters.

        Raises:
            ValueError: If there are several of the same parameters, but the energy was
                trained without a proper prior.
        """
        if x_o is not None:
            x_o = reshape_to_batch_event(x_o, self.energy.condition_shape)
            if x_is_iid and len(x_o) > 1 and self.energy.prior is None:
                raise ValueError(
                    "Expected one observation, or an energy that was trained with a "
                    f"prior, got {len(x_o)} observations: their posterior counts the "
                    "prior once."
                )
        super().set_x(x_o, x_is_iid)
        self._embedded: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        """Move the energy, the prior and the observations."""
        super().to(device)
        self.energy.to(self.device)
        self._embedded = None
        return self

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:
        """Return the potential, shape `(N,)`.

        Args:
            theta: Parameters, shape `(N, D)`.
            track_gradients: Whether the result is differentiable to them.

        Raises:
            ValueError: If no observation is set.
        """
        x = self.x_o
        theta = ensure_theta_batched(torch.as_tensor(theta)).to(x)
        if self._embedded is None:
            with torch.no_grad():
                self._embedded = self.energy.embedding_net(x)
        with torch.set_grad_enabled(track_gradients):
            if len(x) > 1 and not self.x_is_iid:
                f = self.energy(theta.unsqueeze(0), x, self._embedded)[0]
            elif track_gradients:
                f = self._joint(theta, x)
            else:
                rows = theta.split(max(1, ROWS_AT_ONCE // len(x)))
                f = torch.cat([self._joint(some, x) for some in rows])
            return torch.where(within_support(self.prior, theta), f, -torch.inf)

    def _joint(self, theta: Tensor, x: Tensor) -> Tensor:
        f = self.energy(theta.unsqueeze(1), x, self._embedded).sum(-1)
        if len(x) == 1:
            return f
        log_prior = self.log_prior(theta)
        inside = log_prior > -torch.inf
        log_prior = log_prior.clamp(min=self.energy.log_prior_floor)
        return torch.where(inside, f - (len(x) - 1) * log_prior, -torch.inf)

    def log_prior(self, theta: Tensor) -> Tensor:
        """Return the log density of the prior that the energy was trained with.

        Args:
            theta: Parameters, shape `(N, D)`; they are moved inside of its bounds.

        Returns:
            Shape `(N,)`, in nats; zero if it is not known.
        """
        if self.energy.prior is None:
            return theta.new_zeros(len(theta))
        inside = self.energy.support.inside(theta)
        return self.energy.prior.log_prob(inside).reshape(len(theta))
