"""sbi's trainer, but one that builds posteriors of the flow and of the energy."""

from copy import deepcopy
from dataclasses import asdict
from typing import Any, Literal

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    DirectPosteriorParameters,
    PosteriorParameters,
)
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch.distributions import Distribution

from sbi_jeffreys.data.arrays import evenly_spaced
from sbi_jeffreys.data.store import UncopiedSimulations
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors.energy_posterior import (
    EnergyPosterior,
    EnergyPosteriorParameters,
)
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior, never_leaves
from sbi_jeffreys.posteriors.sbi_samplers import sampled_by_sbi


class BothPosteriors(UncopiedSimulations):
    """Holds an energy beside the flow that `sbi` knows, and builds posteriors of both."""

    _energy: ConditionalEnergy | None = None
    _trained_energy: ConditionalEnergy | None = None
    """The energy's networks, that are trained beside `_neural_net`."""

    @property
    def energy(self) -> ConditionalEnergy:
        r"""The trained energy $f(\theta, x)$, an unnormalised log posterior.

        Its networks, pooled with simpler models where those fit held-out simulations
        better (`pool`).

        Raises:
            RuntimeError: Before training.
        """
        if self._energy is None:
            raise RuntimeError("There is no energy yet: call `.train()` first.")
        return self._energy

    def build_posterior(
        self,
        density_estimator: ConditionalDensityEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: Literal[
            "direct", "energy", "mcmc", "rejection", "vi", "importance"
        ] = "direct",
        mcmc_method: str = "slice_np_vectorized",
        vi_method: str = "rKL",
        direct_sampling_parameters: dict[str, Any] | None = None,
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: PosteriorParameters | None = None,
    ) -> NeuralPosterior:
        """Return the flow as a posterior, or the energy that was trained beside it.

        Args:
            density_estimator: A flow; by default the trained one.
            prior: By default that of the constructor. Only its support is used, which
                bounds the posterior; of a `RestrictedPrior`, as in `sbi`, that of the
                prior which it restricts.
            sample_with: "direct" samples the flow. "energy" corrects its samples by the
                energy, or samples the energy as `posterior_parameters` say. The others
                are `sbi`'s ways to sample the flow.
            mcmc_method: Deprecated in `sbi`, as are the next six; for the flow only.
            vi_method: Likewise.
            direct_sampling_parameters: Likewise.
            mcmc_parameters: Likewise.
            vi_parameters: Likewise.
            rejection_sampling_parameters: Likewise.
            importance_sampling_parameters: Likewise.
            posterior_parameters: For "energy", an `EnergyPosteriorParameters`, the
                default; or `sbi`'s `MCMCPosteriorParameters`, `VIPosteriorParameters`,
                `RejectionPosteriorParameters` or `ImportanceSamplingPosteriorParameters`,
                for `sbi`'s posterior of that name with the energy as its potential and
                the flow as its proposal (VI has none). For the others, as in `sbi`.

        Raises:
            ValueError: If there is no prior, and `sample_with` is not "direct".
            ValueError: If parameters of another posterior are given for "energy".
            RuntimeError: If there is no energy, before training.
            TypeError: If `density_estimator` is not a `ConditionalFlow`, for "energy".
        """
        return super().build_posterior(
            density_estimator,
            prior,
            sample_with,
            mcmc_method,
            vi_method,
            direct_sampling_parameters,
            mcmc_parameters,
            vi_parameters,
            rejection_sampling_parameters,
            importance_sampling_parameters,
            posterior_parameters,
        )

    def _build_posterior_parameters(
        self, sample_with: str, **kwargs: Any
    ) -> PosteriorParameters:
        if sample_with == "energy":
            given = [
                name for name, value in kwargs.items() if "_parameters" in name and value
            ]
            if given:
                raise ValueError(
                    "Expected only `posterior_parameters` with `sample_with='energy'`, "
                    f"got {', '.join(given)}."
                )
            return EnergyPosteriorParameters()
        return super()._build_posterior_parameters(sample_with, **kwargs)

    def _create_posterior(
        self,
        estimator: ConditionalDensityEstimator,
        prior: Distribution,
        sample_with: str,
        device: torch.device | str,
        posterior_parameters: Any,
    ) -> NeuralPosterior:
        """Return the energy's posterior, or the flow's: ours where possible, or sbi's."""
        if sample_with == "energy" or isinstance(
            posterior_parameters, EnergyPosteriorParameters
        ):
            if not isinstance(estimator, ConditionalFlow):
                raise TypeError(
                    "Expected `density_estimator` to be a flow that `train` returned, "
                    f"got a {type(estimator).__name__}."
                )
            pair = ModelPair(estimator, self._energy_beside(estimator, device))
            if isinstance(posterior_parameters, EnergyPosteriorParameters):
                return EnergyPosterior(
                    pair,
                    prior,
                    self._novelty(device),
                    self._num_trained_on(),
                    posterior_parameters,
                    device,
                )
            return sampled_by_sbi(pair, prior, posterior_parameters, device)
        if (
            isinstance(posterior_parameters, DirectPosteriorParameters)
            and prior is self._prior
            and never_leaves(estimator, prior, self._device)
        ):
            return FlowPosterior(
                estimator,
                prior,
                device=device,
                energy=self._energy and self._energy_beside(estimator, device),
                novelty=self._novelty(device),
                num_simulations=self._num_trained_on(),
                **asdict(posterior_parameters),
            )
        return super()._create_posterior(
            estimator, prior, sample_with, device, posterior_parameters
        )

    def _energy_beside(
        self, flow: ConditionalFlow, device: torch.device | str
    ) -> ConditionalEnergy:
        """Return a copy of the energy, which shares the flow's embedding.

        That is, if it was trained with it, and both still have the same weights.
        """
        energy = deepcopy(self.energy).to(device)
        if self._trained_energy is None:
            return energy
        trained = ModelPair(self._neural_net, self._trained_energy)
        return trained.energy_beside(flow, energy)

    def _novelty(self, device: torch.device | str) -> Novelty | None:
        """Return what compares observations with the simulations there are."""
        if not self._x_roundwise:
            return None
        x = torch.cat(evenly_spaced(*self._x_roundwise))
        x = x[x.flatten(1).isfinite().all(-1)]
        return Novelty(x).to(device) if len(x) > 1 else None

    def _num_simulations(self) -> int:
        return sum(map(len, self._theta_roundwise))

    def _num_trained_on(self) -> int:
        """Return how many simulations the last training had, held-out ones included."""
        return len(self.train_indices) + len(self.val_indices)
