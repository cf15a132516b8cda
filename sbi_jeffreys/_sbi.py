"""Every private name of sbi and nflows that this package uses.

This module imports nothing else of the package. A name that begins with an underscore may
move in any release of sbi. `TOUCHED` lists all that are used; a test looks for each of
them in the installed version.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from nflows.distributions import Distribution as NFlowsDistribution
from nflows.flows import Flow
from nflows.transforms import Transform
from sbi.inference import NPE_C
from sbi.inference.posteriors import MCMCPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import PosteriorParameters
from sbi.inference.potentials.base_potential import BasePotential
from sbi.inference.trainers._contracts import TrainConfig as TrainConfig
from sbi.neural_nets.estimators import NFlowsFlow
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from sbi.utils import RestrictedPrior
from sbi.utils.sbiutils import ImproperEmpirical
from torch import Tensor, nn
from torch.distributions import Distribution

TOUCHED: dict[type, tuple[str, ...]] = {
    NPE_C: (
        "_best_val_loss",
        "_build_posterior_parameters",
        "_create_posterior",
        "_default_tracker",
        "_describe_round",
        "_device",
        "_neural_net",
        "_prior",
        "_summarize",
        "_summary",
        "_tracker",
    ),
    NeuralPosterior: ("_device", "_map", "_x", "_x_else_default_x"),
    BasePotential: ("_x_is_iid", "_x_o"),
    MCMCPosterior: ("_build_mcmc_init_fn",),
    RestrictedPrior: ("_prior",),
    NFlowsFlow: ("_broadcast_and_align",),
    Flow: ("_distribution", "_embedding_net", "_transform"),
}
"""Private methods and attributes, by the class that has them."""

SAMPLE_WITH = ("direct", "energy", "mcmc", "rejection", "vi", "importance")
"""What posteriors can be sampled with."""

DEPRECATED_DEFAULTS = {"mcmc_method": "slice_np_vectorized", "vi_method": "rKL"}
"""Defaults, other than None, of arguments of `build_posterior` that sbi will remove."""


class BuildsPosteriors(Protocol):
    """Builds posteriors in the place of sbi."""

    def bounding(self, prior: Distribution) -> Distribution:
        """Return the prior as posteriors get it, with its true support."""

    def build(
        self,
        flow: Any,
        prior: Distribution,
        sample_with: str,
        device: str,
        parameters: PosteriorParameters,
    ) -> NeuralPosterior | None:
        """Return a posterior, or None where sbi's own serves; see `PosteriorBuilder`."""

    def default_parameters(
        self, sample_with: str, deprecated: Mapping[str, Any]
    ) -> PosteriorParameters | None:
        """Return how to sample by default, or None where sbi knows."""


class NoTracker:
    """Takes what is sent to a tracker, and writes nothing."""

    log_dir = None

    def log_metric(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    log_metrics = log_params = add_figure = flush = log_metric


class SbiTrainer(NPE_C):
    """sbi's NPE trainer, with plain names for its private ones.

    A subclass provides `append_simulations`, `get_simulations`, `posterior_builder`, and
    `train`, which sets `flow` and calls `record_training`.
    """

    @property
    def prior(self) -> Distribution | None:
        """The prior; an `ImproperEmpirical` of the parameters if none was given."""
        return self._prior

    @property
    def proper_prior(self) -> Distribution | None:
        """The prior that was given, or None."""
        return None if isinstance(self._prior, ImproperEmpirical) else self._prior

    def use_as_prior(self, values: Any, weights: Any) -> None:
        """Take samples for the prior, as sbi does where none was given.

        Args:
            values: Parameters, shape `(N, D)`.
            weights: Their weights, shape `(N,)`.
        """
        self._prior = ImproperEmpirical(values, weights)

    @property
    def device(self) -> str:
        """Where networks are trained."""
        return self._device

    @property
    def flow(self) -> Any:
        """The density estimator that sbi builds posteriors of; None before training."""
        return self._neural_net

    @flow.setter
    def flow(self, flow: Any) -> None:
        self._neural_net = flow

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: all but the tracker.

        sbi also leaves out what builds its networks, and warns that it can't retrain.
        """
        warnings.warn(
            "The copy of a trainer that is pickled or copied has a tracker of its own, "
            "the default one, which writes nothing.",
            stacklevel=2,
        )
        return {**vars(self), "_tracker": None}

    def posterior_builder(self) -> BuildsPosteriors:
        """Return what builds posteriors in the place of sbi."""
        raise NotImplementedError

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

        The arguments from `mcmc_method` to `importance_sampling_parameters` are for the
        flow only. They are deprecated in sbi; use `posterior_parameters`.

        Args:
            density_estimator: A flow; by default the trained one.
            prior: No sample is where its density is zero; by default the constructor's
                prior.
            sample_with: "direct" samples the flow. "energy" corrects the flow's samples
                by the energy, or samples the energy as `posterior_parameters` say. The
                others are sbi's ways to sample the flow.
            posterior_parameters: As in sbi. For "energy", `EnergyPosteriorParameters`
                (the default), or sbi's for MCMC, VI, rejection or importance sampling:
                the result is sbi's posterior of that name, with the energy as its
                potential and the flow as its proposal (VI has no proposal).

        Raises:
            ValueError: If there is no prior and `sample_with` is not "direct", if it is
                none of these names, or if parameters of another posterior are given for
                "energy".
            RuntimeError: Before training.
            TypeError: If `density_estimator` is no estimator, or not a `ConditionalFlow`
                for "energy".
        """
        if sample_with not in SAMPLE_WITH:
            raise ValueError(
                f"Expected `sample_with` to be one of {SAMPLE_WITH}, got {sample_with!r}."
            )
        if density_estimator is None and self.flow is None:
            raise RuntimeError("There is no posterior yet: call `.train()` first.")
        known = self.prior if sample_with == "direct" else self.proper_prior
        if prior is None and known is None:
            raise ValueError(
                f"Expected a `prior` for `sample_with={sample_with!r}`, got none. Pass "
                "it here or to the trainer."
            )
        deprecated = {
            "mcmc_method": mcmc_method,
            "vi_method": vi_method,
            "direct_sampling_parameters": direct_sampling_parameters,
            "mcmc_parameters": mcmc_parameters,
            "vi_parameters": vi_parameters,
            "rejection_sampling_parameters": rejection_sampling_parameters,
            "importance_sampling_parameters": importance_sampling_parameters,
        }
        return super().build_posterior(
            density_estimator=density_estimator,
            prior=prior,
            sample_with=sample_with,
            posterior_parameters=posterior_parameters,
            **{n: v for n, v in deprecated.items() if v != DEPRECATED_DEFAULTS.get(n)},
        )

    def _create_posterior(
        self,
        estimator: Any,
        prior: Distribution,
        sample_with: Any,
        device: Any,
        posterior_parameters: PosteriorParameters,
    ) -> NeuralPosterior:
        builder = self.posterior_builder()
        prior = builder.bounding(prior)
        arguments = (estimator, prior, sample_with, device, posterior_parameters)
        posterior = builder.build(*arguments)
        return posterior or super()._create_posterior(*arguments)

    def _default_tracker(self) -> Tracker:
        return NoTracker()

    def _build_posterior_parameters(
        self, sample_with: Any, **kwargs: Any
    ) -> PosteriorParameters:
        parameters = self.posterior_builder().default_parameters(sample_with, kwargs)
        return parameters or super()._build_posterior_parameters(sample_with, **kwargs)

    def record_training(
        self,
        results: Mapping[str, float],
        history: Mapping[str, list[Any]],
        first_epoch: int,
    ) -> None:
        """Add a training to `summary`.

        Args:
            results: Numbers of this training; "epochs_trained" and
                "best_validation_loss" among them.
            history: One list for each quantity, with one entry for each epoch.
            first_epoch: The epoch of the history at which this training began.
        """
        self.epoch = int(results["epochs_trained"])
        self._best_val_loss = results["best_validation_loss"]
        for name, value in results.items():
            self._summary.setdefault(name, []).append(value)
        for name, values in history.items():
            self._summary.setdefault(name, []).extend(values[first_epoch:])

    def summarize(self) -> Tracker:
        """Send the last training that was recorded to the tracker, and return this."""
        self._summarize(round_=0)
        return self._tracker

    def describe_training(self) -> str:
        """Return epochs and loss of the last training that was recorded, as text."""
        return self._describe_round(0, self._summary)


def restricts(proposal: Any, prior: Any) -> bool:
    """Return whether a proposal is a `RestrictedPrior` made from this very prior."""
    return isinstance(proposal, RestrictedPrior) and proposal._prior is prior


def unrestricted(prior: Any) -> Any:
    """Return the prior that a `RestrictedPrior` restricts, or else the prior itself."""
    return prior._prior if isinstance(prior, RestrictedPrior) else prior


def device_of(posterior: NeuralPosterior) -> torch.device | str:
    """Return the device on which a posterior of any kind takes its inputs."""
    return getattr(posterior, "_device", "cpu")


def x_or_default(posterior: NeuralPosterior, x: Tensor | None) -> Tensor:
    """Return x, or the posterior's default x if x is None.

    Raises:
        ValueError: If x is None and there is no default.
    """
    return posterior._x_else_default_x(x)


class NFlowsParts(NamedTuple):
    """The parts of an nflows flow.

    Attributes:
        base: Distribution of the noise.
        transform: Maps parameters to noise.
        embedding_net: Embeds the condition.
    """

    base: NFlowsDistribution
    transform: Transform
    embedding_net: nn.Module


def nflows_parts(estimator: NFlowsFlow) -> NFlowsParts:
    """Return the parts of sbi's estimator around an nflows flow."""
    flow: Flow = estimator.net
    return NFlowsParts(flow._distribution, flow._transform, flow._embedding_net)


def broadcast_and_align(
    estimator: NFlowsFlow, input: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Broadcast inputs and conditions to each other, as sbi's estimators do.

    Args:
        estimator: The estimator, which knows the shapes of both.
        input: Shape `(sample, batch, *input_shape)` or `(batch, *input_shape)`.
        condition: Shape `(batch, *condition_shape)` or `(sample, batch, ...)`.

    Returns:
        Inputs `(sample, batch, *input_shape)`, conditions
        `(sample, batch, *condition_shape)`, and the size of the batch.
    """
    return estimator._broadcast_and_align(input, condition)
