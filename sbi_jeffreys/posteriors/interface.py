"""The parts of sbi's posterior interface that both posteriors share."""

from collections.abc import Callable

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils.torchutils import process_device
from sbi.utils.user_input_checks import process_x
from torch import Tensor

from sbi_jeffreys.posteriors.trust import TrustCheck


def observations(x: Tensor, condition_shape: torch.Size) -> Tensor:
    """Return observations with a batch axis, shape `(batch, *condition_shape)`.

    Args:
        x: A tensor or an array, with or without a batch axis.
        condition_shape: The shape of one observation.

    Raises:
        RuntimeError: If the trailing axes of x do not have this shape.
    """
    return reshape_to_batch_event(process_x(x), condition_shape)


def move(
    posterior: NeuralPosterior,
    trust: TrustCheck,
    device: torch.device | str,
    set_up: Callable[[torch.device | str], None],
) -> None:
    """Move models, prior, simulations and default observation to a device.

    Args:
        posterior: The posterior to move.
        trust: Its models, prior and simulations.
        device: Where to move.
        set_up: Builds the posterior's own parts on a device.
    """
    device, x = process_device(device), posterior.default_x
    trust.to(device)
    set_up(device)
    if x is not None:
        posterior.set_default_x(x.to(device))
