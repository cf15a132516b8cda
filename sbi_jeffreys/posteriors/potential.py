"""Energy and flow as potentials of sbi."""

from typing import Any, Self

import torch
from sbi.inference.potentials.base_potential import BasePotential
from sbi.inference.potentials.posterior_based_potential import PosteriorBasedPotential
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.posteriors.interface import observations, parameters_like, rows_like
from sbi_jeffreys.sampling.blocks import blocks
from sbi_jeffreys.sampling.rejection import is_inside

ROWS_AT_ONCE = 50_000
"""Most pairs of parameters and observations evaluated at a time without gradients."""

NEXT_TO_BOUNDS = 1e-3
"""Share of an interval, at either end, in which the flow's density counts as constant."""


class EnergyPotential(BasePotential):
    r"""The energy :math:`f(\theta, x_o)`, an unnormalised log posterior in nats.

    For several observations that are independent given the parameters, log-ratios add up
    and the prior counts once:

    .. math:: \log p(\theta) + \sum_{i=1}^n r(\theta, x_i)
        = \sum_{i=1}^n f(\theta, x_i) - (n - 1) \log p(\theta).

    The potential is minus infinity outside the prior.
    """

    def __init__(
        self,
        energy: ConditionalEnergy,
        prior: Distribution,
        x_o: Tensor | None = None,
        device: torch.device | str = "cpu",
        may_have_nan: bool = True,
    ) -> None:
        """
        Args:
            energy: The energy f.
            prior: Only its support is used. Outside of it the potential is minus
                infinity. The prior that several observations count once is the one that
                the energy was trained with.
            x_o: Observations, shape `(n, *condition_shape)`.
            device: Where to evaluate.
            may_have_nan: Whether NaN in observations stands for a missing entry.
        """
        self.energy = energy.eval()
        self.may_have_nan = may_have_nan
        super().__init__(prior, x_o, device)

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:
        """Set the observations.

        Args:
            x_o: Shape `(n, *condition_shape)`.
            x_is_iid: Whether they are several observations of the same parameters. If
                not, the i-th observation belongs to the i-th parameters.

        Raises:
            ValueError: If they are infinite or have NaN that they may not have, or if
                there are several observations of the same parameters, but the energy
                was trained without a proper prior.
        """
        if x_o is not None:
            shape = self.energy.condition_shape
            x_o = observations(x_o, shape, self.may_have_nan).to(self.device)
            if x_is_iid and len(x_o) > 1 and self.energy.prior is None:
                raise ValueError(
                    f"Expected one observation, got {len(x_o)} observations and an "
                    "energy that was trained without a prior. Their joint posterior "
                    "needs the prior."
                )
        self._x_o, self._x_is_iid = x_o, x_is_iid
        self._embedded: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        """Move the energy, the prior and the observations to a device."""
        super().to(device)
        self.energy.to(self.device)
        self._embedded = None
        return self

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:
        """Return the potential, shape `(N,)`.

        Args:
            theta: Parameters, shape `(N, D)`.
            track_gradients: Whether the result is differentiable to `theta`.

        Raises:
            ValueError: If no observation is set.
        """
        x = self.x_o
        theta = rows_like(theta, self.energy.loc)
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
            return torch.where(is_inside(self.prior, theta), f, -torch.inf)

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
            theta: Parameters, shape `(N, D)`. They are moved inside its bounds.

        Returns:
            Log densities in nats, shape `(N,)`; zeros if the prior is unknown.
        """
        if self.energy.prior is None:
            return theta.new_zeros(len(theta))
        inside = self.energy.support.inside(theta)
        return self.energy.prior.log_prob(inside).to(theta.dtype).reshape(len(theta))


@torch.no_grad()
def batched_potential(
    energy: ConditionalEnergy, prior: Distribution, theta: Tensor, x: Tensor, size: int
) -> Tensor:
    """Return the energy at parameters of their own for each observation, `(N, batch)`.

    It is minus infinity outside the prior.

    Args:
        energy: The energy f.
        prior: Only its support is used.
        theta: Parameters, shape `(N, batch, D)`.
        x: Observations, shape `(batch, *condition_shape)`.
        size: Most parameters evaluated at a time.
    """
    f = theta.new_empty(theta.shape[:2])
    for rows, columns in blocks(len(f), len(x), size):
        f[rows, columns] = energy(theta[rows, columns], x[columns])
    return torch.where(is_inside(prior, theta), f, -torch.inf)


class FlowPotential(PosteriorBasedPotential):
    """The potential for `map` and for conditional densities."""

    def set_x(self, x_o: Any, x_is_iid: bool | None = False) -> None:
        """Set the observations, `(n, *condition_shape)`; see `EnergyPotential.set_x`."""
        if x_o is not None:
            flow = self.posterior_estimator
            x_o = observations(x_o, flow.condition_shape, flow.has_nan).to(self.device)
        self._x_o, self._x_is_iid = x_o, x_is_iid

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:
        """Return log densities in nats, `(N,)`, of parameters `(N, D)`."""
        theta = away_from_bounds(self.posterior_estimator, self.prior, theta)
        return super().__call__(theta, track_gradients)


def away_from_bounds(flow: ConditionalFlow, prior: Distribution, theta: Tensor) -> Tensor:
    """Return parameters `(..., D)`, those next to a bound moved away from it.

    They are moved only from the inside to the inside of the prior.

    Raises:
        ValueError: If there are not D of them.
    """
    theta = parameters_like(theta, flow.support.low)
    moved = flow.support.away_from_bounds(theta, NEXT_TO_BOUNDS)
    if torch.equal(moved, theta):
        return theta
    stays = is_inside(prior, theta) & is_inside(prior, moved)
    return torch.where(stays.unsqueeze(-1), moved, theta)
