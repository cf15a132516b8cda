"""sbi's samplers with the energy as their potential and the flow as their proposal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from math import log
from typing import Any

import torch
from sbi.inference.posteriors import (
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
    VIPosterior,
)
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    PosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.inference.potentials.base_potential import BasePotential
from sbi.utils import mcmc_transform
from sbi.utils.torchutils import ensure_theta_batched
from sbi.utils.user_input_checks import process_x
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import x_or_default
from sbi_jeffreys.models.flow import ConditionalFlow, Shape
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors.interface import OwnPotential
from sbi_jeffreys.posteriors.potential import ROWS_AT_ONCE, EnergyPotential
from sbi_jeffreys.preprocessing.true_support import TruePrior
from sbi_jeffreys.sampling.rejection import Rejection, is_inside


class FlowProposal:
    """The flow given the observation of a potential: the proposal of sbi's samplers.

    For several observations it is the mixture of the flow given each of them.
    """

    def __init__(self, flow: ConditionalFlow, potential: EnergyPotential) -> None:
        """
        Args:
            flow: The flow.
            potential: Holds the observations and the prior.
        """
        self.flow, self.potential = flow, potential

    def sample(self, sample_shape: Shape = (), **kwargs: Any) -> Tensor:
        """Return draws, shape `(*sample_shape, D)`; of the prior before there is an x."""
        if self.potential.return_x_o() is None:
            return self.potential.prior.sample(torch.Size(sample_shape))
        x, num = self.potential.x_o, torch.Size(sample_shape).numel()
        draws = self._draw(-(-num // len(x)), x)
        some = torch.randperm(draws.shape[:2].numel(), device=draws.device)[:num]
        return draws.flatten(0, 1)[some].reshape(*sample_shape, -1)

    @torch.no_grad()
    def _draw(self, num: int, x: Tensor) -> Tensor:
        return self.flow.sample((num,), x)

    def log_prob(self, theta: Tensor, **kwargs: Any) -> Tensor:
        """Return log densities in nats, `(N,)`, of parameters `(N, D)`."""
        x = self.potential.x_o
        given = self.flow.given(x)
        mixture = [
            given.log_prob(some.unsqueeze(1).expand(-1, len(x), -1)).logsumexp(-1)
            for some in theta.split(max(1, ROWS_AT_ONCE // len(x)))
        ]
        return torch.cat(mixture) - log(len(x))

    def to(self, device: torch.device | str) -> None:
        """Move the flow and the potential."""
        self.flow.to(device)
        self.potential.to(device)

    @property
    def support(self) -> Any:
        """The prior's support."""
        return self.potential.prior.support

    @property
    def mean(self) -> Tensor:
        """The prior's mean."""
        return self.potential.prior.mean

    @property
    def stddev(self) -> Tensor:
        """The prior's standard deviation."""
        return self.potential.prior.stddev


class MCMCPosteriorWithInit(MCMCPosterior):
    """sbi's `MCMCPosterior`, which may choose where its chains start from."""

    def initial_proposal(self, proposal: Any, potential: Any) -> Any:
        """Return the density from which chains start.

        Args:
            proposal: The proposal of the posterior.
            potential: The potential of the chains, with its observation.
        """
        return proposal

    def _build_mcmc_init_fn(
        self,
        proposal: Any,
        potential_fn: Any,
        transform: Any,
        init_strategy: str,
        **kwargs: Any,
    ) -> Any:
        start = self.initial_proposal(proposal, potential_fn)
        return super()._build_mcmc_init_fn(
            start, potential_fn, transform, init_strategy, **kwargs
        )


class FlowInsidePrior(FlowProposal):
    """The flow, from which only samples inside the prior are drawn."""

    def _draw(self, num: int, x: Tensor) -> Tensor:
        rejection = Rejection(self.flow.sample, self.potential.prior)
        return rejection.sample(num, x, ROWS_AT_ONCE)


class OwnObservation(OwnPotential):
    """A posterior of sbi of which each call has an observation of its own.

    sbi sets the observation on a potential that all calls share, so that threads at
    different observations would get each other's samples.
    """

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Return samples; arguments are sbi's."""
        with self._apart() as sbis:
            return sbis.sample(*args, **kwargs)

    def sample_batched(self, *args: Any, **kwargs: Any) -> Any:
        """Return samples for each of several observations; arguments are sbi's."""
        with self._apart() as sbis:
            return sbis.sample_batched(*args, **kwargs)

    def log_prob(self, *args: Any, **kwargs: Any) -> Any:
        """Return log densities; arguments are sbi's."""
        with self._apart() as sbis:
            return sbis.log_prob(*args, **kwargs)

    @contextmanager
    def _apart(self) -> Iterator[Any]:
        """Give sbi's methods on a copy with a potential of its own; keep its results."""
        mine: Any = object.__new__(type(self))
        mine.__dict__.update(self.__dict__)  # `copy` would share the attributes' dict
        mine.potential_fn = copy(mine.potential_fn)
        mine.proposal = FlowProposal(mine.proposal.flow, mine.potential_fn)
        before = vars(mine).copy()
        yield super(OwnObservation, mine)
        news = {n: v for n, v in vars(mine).items() if v is not before.get(n)}
        self.__dict__.update(news)


class EnergyMCMCPosterior(OwnObservation, MCMCPosteriorWithInit):
    """sbi's `MCMCPosterior` with chains that start from the flow at their observation."""

    def initial_proposal(
        self, proposal: FlowProposal, potential: EnergyPotential
    ) -> FlowProposal:
        """Return the flow given the observation of the potential."""
        return FlowInsidePrior(proposal.flow, potential)


class VIPosteriorInsidePrior(VIPosterior):
    """sbi's `VIPosterior`, restricted to where the density of the prior is positive."""

    def sample(
        self,
        sample_shape: Shape = (),
        x: Tensor | None = None,
        show_progress_bars: bool = True,
    ) -> Tensor:
        """Return samples; see sbi. Draws outside the prior are rejected.

        Raises:
            RuntimeError: If too few draws are inside the prior.
        """
        conditions = self._conditions(x)
        num = torch.Size(sample_shape).numel()
        samples = self._rejection().sample(num, conditions, ROWS_AT_ONCE)
        batch = samples.shape[1:2] if len(conditions) > 1 else ()
        return samples.reshape(*sample_shape, *batch, samples.shape[-1])

    def log_prob(
        self, theta: Tensor, x: Tensor | None = None, track_gradients: bool = False
    ) -> Tensor:
        """Return log densities in nats; see sbi. They are normalised inside the prior.

        Raises:
            RuntimeError: If no draw is inside the prior.
        """
        conditions = self._conditions(x)
        log_q = super().log_prob(theta, x, track_gradients)
        num = 10_000
        acceptance = self._rejection().acceptance(conditions, num, ROWS_AT_ONCE)
        inside = is_inside(self.potential_fn.prior, ensure_theta_batched(theta))
        return torch.where(inside, log_q - acceptance.log(), -torch.inf)

    def _conditions(self, x: Tensor | None) -> Tensor:
        return process_x(x_or_default(self, x))

    def _rejection(self) -> Rejection:
        def draw(sample_shape: torch.Size, x: Tensor) -> Tensor:
            drawn = VIPosterior.sample(self, sample_shape, x)
            return drawn.reshape(sample_shape.numel(), len(x), -1)

        return Rejection(draw, self.potential_fn.prior)


def variational(
    potential: BasePotential, prior: Distribution, options: Mapping[str, Any]
) -> VIPosterior:
    """Return a VI posterior, which rejects draws where the prior's support is a part.

    Args:
        potential: The potential.
        prior: All samples are inside its support.
        options: Further arguments of sbi's posterior.
    """
    kind = VIPosteriorInsidePrior if isinstance(prior, TruePrior) else VIPosterior
    return kind(potential, prior=prior, **options)


class EnergyRejectionPosterior(OwnObservation, RejectionPosterior):
    """sbi's `RejectionPosterior`."""


class EnergyImportancePosterior(OwnObservation, ImportanceSamplingPosterior):
    """sbi's `ImportanceSamplingPosterior`."""


def sampled_by_sbi(
    pair: ModelPair,
    prior: Distribution,
    parameters: PosteriorParameters,
    device: torch.device | str,
) -> NeuralPosterior:
    """Return sbi's posterior with the energy as its potential, the flow as its proposal.

    Args:
        pair: Flow and energy.
        prior: All samples are inside its support.
        parameters: sbi's parameters for an MCMC, rejection, importance sampling or VI
            posterior. A VI posterior has no proposal.
        device: Where to sample.

    Raises:
        TypeError: If the parameters are for another kind of posterior.
    """
    potential = EnergyPotential(
        pair.energy, prior, device=device, may_have_nan=pair.flow.has_nan
    )
    options = {
        "theta_transform": mcmc_transform(prior, device=device),
        "device": device,
        **asdict(parameters),
    }
    if isinstance(parameters, VIPosteriorParameters):
        return variational(potential, prior, options)
    for kind, posterior in _SAMPLERS.items():
        if isinstance(parameters, kind):
            return posterior(potential, FlowProposal(pair.flow, potential), **options)
    raise TypeError(
        "Expected `posterior_parameters` to be an EnergyPosteriorParameters, or sbi's "
        "for MCMC, rejection, importance sampling or VI, got a "
        f"{type(parameters).__name__}."
    )


_SAMPLERS = {
    MCMCPosteriorParameters: EnergyMCMCPosterior,
    RejectionPosteriorParameters: EnergyRejectionPosterior,
    ImportanceSamplingPosteriorParameters: EnergyImportancePosterior,
}
