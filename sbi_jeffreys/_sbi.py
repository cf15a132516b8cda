"""Every private name of sbi and nflows that this package uses."""

from typing import NamedTuple

from nflows.distributions import Distribution
from nflows.flows import Flow
from nflows.transforms import Transform
from sbi.neural_nets.estimators import NFlowsFlow
from torch import Tensor, nn


class NFlowsParts(NamedTuple):
    """The parts of an nflows flow.

    Attributes:
        base: Distribution of the noise.
        transform: Maps parameters to noise.
        embedding_net: Embeds the condition.
    """

    base: Distribution
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
