"""Posteriors of a training: of the flow, and of the energy that corrects it."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    DirectPosteriorParameters,
    PosteriorParameters,
    VIPosteriorParameters,
)
from sbi.inference.potentials import posterior_estimator_based_potential
from torch.distributions import Distribution

from sbi_jeffreys.data.store import SimulationStore
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors.energy_posterior import (
    EnergyPosterior,
    EnergyPosteriorParameters,
)
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from sbi_jeffreys.posteriors.sbi_samplers import sampled_by_sbi, variational
from sbi_jeffreys.preprocessing.true_support import with_true_support


@dataclass(frozen=True)
class PosteriorBuilder:
    """Builds posteriors from what a training gave.

    Attributes:
        networks: Flow and energy as they were trained; None before training.
        energy: The energy that was kept, pooled or not; None before training.
        simulations: What observations are compared with.
        num_simulations: Simulations of the training, held-out ones included.
        is_amortised: Whether the posteriors are meant for all x.
        show_progress_bars: Whether they show progress where a call does not say it.
    """

    networks: ModelPair | None
    energy: ConditionalEnergy | None
    simulations: SimulationStore
    num_simulations: int
    is_amortised: bool = True
    show_progress_bars: bool = True

    def bounding(self, prior: Distribution) -> Distribution:
        """Return the prior as posteriors get it, with its true support."""
        return with_true_support(prior)

    def build(
        self,
        flow: Any,
        prior: Distribution,
        sample_with: str,
        device: torch.device | str,
        parameters: PosteriorParameters,
    ) -> NeuralPosterior | None:
        """Return a posterior, or None where sbi's own serves.

        Args:
            flow: A density estimator.
            prior: Its support bounds the posterior.
            sample_with: As in `JNPE.build_posterior`.
            device: Where to sample.
            parameters: How to sample.

        Raises:
            RuntimeError: For the energy, before training.
            TypeError: For the energy, if `flow` is not a `ConditionalFlow`.
        """
        if sample_with == "energy" or isinstance(parameters, EnergyPosteriorParameters):
            return self._energy_posterior(flow, prior, device, parameters)
        is_direct = isinstance(parameters, DirectPosteriorParameters)
        if is_direct and isinstance(flow, ConditionalFlow):
            return self._flow_posterior(flow, prior, device, parameters)
        if isinstance(parameters, VIPosteriorParameters):
            potential, transform = posterior_estimator_based_potential(flow, prior, None)
            options = {"theta_transform": transform, "device": device}
            return variational(potential, prior, options | asdict(parameters))
        return None

    def default_parameters(
        self, sample_with: str, deprecated: Mapping[str, Any]
    ) -> PosteriorParameters | None:
        """Return the parameters of the corrected posterior, for "energy".

        Args:
            sample_with: As in `JNPE.build_posterior`.
            deprecated: Arguments that sbi has deprecated, by name.

        Raises:
            ValueError: If deprecated parameters are given for "energy".
        """
        if sample_with != "energy":
            return None
        given = [n for n, value in deprecated.items() if "_parameters" in n and value]
        if given:
            raise ValueError(
                "Expected only `posterior_parameters` with `sample_with='energy'`, got "
                f"{', '.join(given)}."
            )
        return EnergyPosteriorParameters()

    def _energy_posterior(
        self,
        flow: Any,
        prior: Distribution,
        device: torch.device | str,
        parameters: PosteriorParameters,
    ) -> NeuralPosterior:
        """Return the posterior of the energy, sampled with the help of a flow."""
        if not isinstance(flow, ConditionalFlow):
            raise TypeError(
                "Expected `density_estimator` to be a flow that `train` returned, got a "
                f"{type(flow).__name__}."
            )
        pair = ModelPair(flow, self._energy_for(flow, device))
        if not isinstance(parameters, EnergyPosteriorParameters):
            return sampled_by_sbi(pair, prior, parameters, device)
        return EnergyPosterior(
            pair,
            prior,
            self._novelty(device),
            self.num_simulations,
            parameters,
            device,
            self.is_amortised,
            self.show_progress_bars,
        )

    def _flow_posterior(
        self,
        flow: ConditionalFlow,
        prior: Distribution,
        device: torch.device | str,
        parameters: DirectPosteriorParameters,
    ) -> FlowPosterior:
        """Return the posterior of a flow.

        `check_finite_x`, which sbi adds to `parameters`, has no effect: whether x may
        have NaN depends on the simulations of the training.
        """
        return FlowPosterior(
            flow,
            prior,
            device=device,
            energy=None if self.energy is None else self._energy_for(flow, device),
            novelty=self._novelty(device),
            num_simulations=self.num_simulations,
            is_amortised=self.is_amortised,
            show_progress_bars=self.show_progress_bars,
            max_sampling_batch_size=parameters.max_sampling_batch_size,
            enable_transform=parameters.enable_transform,
        )

    def _energy_for(
        self, flow: ConditionalFlow, device: torch.device | str
    ) -> ConditionalEnergy:
        """Return a copy of the energy.

        It shares the flow's embedding if it was trained with it and both embeddings still
        have the same weights.
        """
        if self.energy is None or self.networks is None:
            raise RuntimeError("There is no energy yet: call `.train()` first.")
        energy = deepcopy(self.energy).to(device)
        return self.networks.energy_beside(flow, energy)

    def _novelty(self, device: torch.device | str) -> Novelty | None:
        """Return what compares observations with the simulations there are."""
        x = self.simulations.valid_x()
        return Novelty(x).to(device) if len(x) > 1 else None
