"""Flow and energy, built for the simulations that they will be trained on."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Protocol

import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.neural_nets.factory import model_builders
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_jeffreys.models.conditional import condition_on
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.log_ratio import LogRatioEnsemble, LogRatioNet
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.models.prior_base import base_density, log_prior_floor
from sbi_jeffreys.models.spline_flow import build_spline_flow
from sbi_jeffreys.preprocessing.embedding import (
    check_features,
    standardizing_embedding,
)
from sbi_jeffreys.preprocessing.scaling import as_precise_as
from sbi_jeffreys.preprocessing.support import support_of

FlowBuilder = Callable[[Tensor, Tensor], ConditionalDensityEstimator]
"""Maps parameters `(N, D)` and simulations `(N, ...)` to an estimator."""


class FlowConfig(Protocol):
    """A configuration of an estimator, as those of sbi's `neural_nets`."""

    def build(
        self, batch_input: Tensor, batch_condition: Tensor
    ) -> ConditionalDensityEstimator:
        """Return the estimator.

        Args:
            batch_input: Standardised, unconstrained parameters, shape `(N, D)`.
            batch_condition: Simulations, shape `(N, ...)`.
        """


FlowChoice = str | FlowBuilder | FlowConfig | None
"""What `density_estimator` may be."""

EnergyBuilder = Callable[[int, int], nn.Module]
"""Maps the numbers of parameters and of features of x to a log-ratio network."""

NOT_REPARAMETERISED = ("mdn", "made", "mdn_snpe_a", "tabpfn")
"""Estimators of sbi whose samples are not differentiable."""


@dataclass(frozen=True)
class PairBuilder:
    """Builds the flow and the energy of one training.

    Attributes:
        flow: Called with standardised, unconstrained parameters `(N, D)` and simulations
            `(N, ...)`; returns an estimator of a type that `condition_on` knows.
        energy_net: The log-ratio network, or what builds it from the numbers of
            parameters and of embedded features of x.
        energy_embedding_net: Embeds x for the energy; None for the flow's embedding.
        num_energies: Networks whose mean is the energy, if `energy_net` builds them.
        device: Where they will be trained.
    """

    flow: FlowBuilder
    energy_net: nn.Module | EnergyBuilder = LogRatioNet
    energy_embedding_net: nn.Module | None = None
    num_energies: int = 4
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise a TypeError if a network is none."""
        _check_network("energy_embedding_net", self.energy_embedding_net)
        if not callable(self.energy_net):
            raise TypeError(
                "Expected `energy_net` to be a module or a function that builds one, got "
                f"{self.energy_net!r}."
            )

    def __call__(self, theta: Tensor, x: Tensor, prior: Distribution | None) -> ModelPair:
        """Return the pair, on the CPU. Prior and base stay on the training device.

        Args:
            theta: Parameters, shape `(N, D)`, on the CPU.
            x: Their simulations, shape `(N, ...)`, on the CPU.
            prior: The prior of the parameters, on the training device; or None.

        Raises:
            TypeError: If the flow can't be sampled differentiably.
            ValueError: If features of x have not the shape `(batch, features)`, or are
                not finite.
        """
        support = support_of(prior, theta)
        net = self.flow(support(theta)[0], x)
        if isinstance(net, nn.Module):
            as_precise_as(x, net)
        with torch.no_grad():
            condition_on(net, x[:2]).rsample_and_log_prob(1)
        flow = ConditionalFlow(net, support, has_nan=bool(x.isnan().any()))
        embedding_net = flow.embedding_net
        if self.energy_embedding_net is not None or embedding_net is None:
            embedding_net = standardizing_embedding(
                theta, x, self.energy_embedding_net, "energy_embedding_net"
            )
        check_features("the embedding of `density_estimator`", embedding_net, x)
        energy_net = self._log_ratio(embedding_net, theta, x)
        inside = support.inside(theta).to(self.device)
        base = base_density(prior, inside, deepcopy(support).to(self.device))
        energy = ConditionalEnergy(
            energy_net,
            base,
            support,
            theta,
            embedding_net,
            x[0].shape,
            prior,
            log_prior_floor(prior, base, inside),
        )
        pair = ModelPair(flow, energy)
        as_precise_as(x, pair)
        return pair

    def _log_ratio(self, embedding_net: nn.Module, theta: Tensor, x: Tensor) -> nn.Module:
        if isinstance(self.energy_net, nn.Module):
            return self.energy_net
        with torch.no_grad():
            features = embedding_net.to(x.device)(x[:2]).shape[-1]
        return LogRatioEnsemble(
            self.energy_net(theta.shape[-1], features) for _ in range(self.num_energies)
        )


def _check_network(name: str, net: object) -> None:
    """Raise a TypeError unless `net`, the argument `name`, is a module or None."""
    if net is not None and not isinstance(net, nn.Module):
        raise TypeError(f"Expected `{name}` to be a torch module, got {net!r}.")


class _AskedForNoDevice(nn.Identity):
    """A network without parameters. sbi asks all but `nn.Identity` for a parameter."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input: Tensor) -> Tensor:
        return self.net(input)


def build_flow_of_sbi(
    theta: Tensor, x: Tensor, name: str, embedding_net: nn.Module | None
) -> ConditionalDensityEstimator:
    """Return a flow of sbi.

    Args:
        theta: Standardised, unconstrained parameters, shape `(N, D)`.
        x: Simulations, shape `(N, *condition_shape)`.
        name: Its name in sbi.
        embedding_net: Embeds x; None to take x, `(N, features)`, as it is.

    Raises:
        ValueError: If features of x have not the shape `(batch, features)`, or are not
            finite.
    """
    net = nn.Identity() if embedding_net is None else as_precise_as(x, embedding_net)
    if embedding_net is not None or x.ndim > 2:
        check_features("`embedding_net`", net, x)
    if not any(True for _ in net.parameters()):
        net = _AskedForNoDevice(net)
    return posterior_nn(name, embedding_net=net)(theta, x)


def build_from_config(
    theta: Tensor, x: Tensor, config: FlowConfig
) -> ConditionalDensityEstimator:
    """Return the estimator of a configuration."""
    return config.build(batch_input=theta, batch_condition=x)


def builder_of(given: FlowBuilder | FlowConfig) -> FlowBuilder:
    """Return what builds a flow.

    Args:
        given: A builder, which is returned, or a configuration.

    Raises:
        TypeError: If it is neither, or can't build conditional estimators.
    """
    name = getattr(given, "__name__", type(given).__name__)
    if not hasattr(given, "build"):
        if isinstance(given, nn.Module) or not callable(given):
            raise TypeError(
                "Expected `density_estimator` to be a name, a configuration that has "
                f"`build`, or a function that builds a flow, got a {name}."
            )
        return given
    if isinstance(given, type):
        raise TypeError(
            f"Expected `density_estimator` to be an object, got the class {name}. Write "
            f"`{name}()`."
        )
    try:
        signature(given.build).bind(batch_input=None, batch_condition=None)
    except TypeError as error:
        raise TypeError(
            "Expected `density_estimator.build` to take `batch_input` and "
            f"`batch_condition`, but that of {name} does not: {error}."
        ) from error
    return partial(build_from_config, config=given)


def flow_builder(
    density_estimator: FlowChoice, embedding_net: nn.Module | None
) -> FlowBuilder:
    """Return what builds a flow.

    Args:
        density_estimator: The name of a flow, a configuration of it, or what builds it;
            None for "nsf".
        embedding_net: Embeds x, for a flow that is given by name.

    Raises:
        TypeError: If `density_estimator` is none of these, or `embedding_net` no module.
        ValueError: If the name is unknown, or `embedding_net` comes with a builder.
    """
    _check_network("embedding_net", embedding_net)
    if density_estimator is None:
        density_estimator = "nsf"
    if not isinstance(density_estimator, str):
        if embedding_net is not None:
            raise ValueError(
                "Expected `embedding_net` only with a named `density_estimator`; give "
                "it to the builder or the configuration instead."
            )
        return builder_of(density_estimator)
    name = density_estimator.lower()
    if name == "nsf":
        return partial(build_spline_flow, embedding_net=embedding_net)
    if name in NOT_REPARAMETERISED or name not in model_builders:
        raise ValueError(
            "Expected `density_estimator` to be 'nsf', 'maf' or another of sbi's flows, "
            f"which can be sampled differentiably, got {density_estimator!r}."
        )
    return partial(build_flow_of_sbi, name=name, embedding_net=embedding_net)
