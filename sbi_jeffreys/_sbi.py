"""Every private name of sbi and nflows that this package uses."""

from typing import Any

import torch
from sbi.inference.posteriors import MCMCPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor


def device_of(posterior: NeuralPosterior) -> torch.device | str:
    """Return the device on which a posterior of any kind takes its inputs."""
    return posterior._device


def x_or_default(posterior: NeuralPosterior, x: Tensor | None) -> Tensor:
    """Return x, or the posterior's default x if x is None.

    Raises:
        ValueError: If x is None and there is no default.
    """
    return posterior._x_else_default_x(x)


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
