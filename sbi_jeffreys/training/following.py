r"""The flow follows an energy that stays as it is.

    min over φ of KL(p_φ ‖ q) = E_{θ~p_φ}[log p_φ − f] + log Z

It uses only x of the training pairs. The flow's held-out negative log-likelihood decides
which weights are kept.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.processes import share_tensors
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.objective.multipliers import FixedMultipliers
from sbi_jeffreys.training.checkpoint import copy_nested
from sbi_jeffreys.training.early_stopping import EarlyStopping
from sbi_jeffreys.training.epochs import EpochLoop
from sbi_jeffreys.training.step import PrimalDualStep, TrainedPair, TrainingOptions


class FollowedFlow(NamedTuple):
    """A flow that followed an energy.

    Attributes:
        loss: Its held-out negative log-likelihood, in nats.
        weights: Its state.
    """

    loss: float
    weights: dict[str, Tensor]


def follow(
    flow: ConditionalFlow,
    energy: ConditionalEnergy,
    training: Batches,
    validation: Batches,
    *,
    options: TrainingOptions,
    learning_rate: float,
    best_loss: float,
    seed: int,
    device: torch.device,
    max_num_epochs: int,
    stop_after_epochs: int,
    clip_max_norm: float | None,
    show_progress: bool,
) -> FollowedFlow:
    """Train the flow in place by its reverse KL to an energy alone.

    Only weights that lower the flow's held-out loss are kept. If the loss is not finite,
    the flow stays as it was, with a warning.

    Args:
        flow: The flow.
        energy: The energy. It stays as it is, in evaluation mode.
        training: Pairs whose x is used.
        validation: Held-out pairs.
        options: See `TrainingOptions`.
        learning_rate: Learning rate of Adam.
        best_loss: Held-out negative log-likelihood of the flow as it is, in nats.
        seed: Seed of the random numbers.
        device: Where the models are.
        max_num_epochs: Most epochs.
        stop_after_epochs: Number of epochs without a lower held-out loss after which to
            stop. The learning rate falls after half as many.
        clip_max_norm: Bound on the norm of the gradient; None for no bound.
        show_progress: Whether to show a progress bar.

    Returns:
        The flow's lowest held-out loss and its weights.
    """
    pair = TrainedPair(flow, energy, options)
    share_tensors([t.data for t in pair.state_dict().values()])
    stopping = EarlyStopping(best_loss)
    with _without_gradients(pair.parameter_groups()[1]):
        step = PrimalDualStep(
            pair,
            FixedMultipliers((0.0, 1.0, 0.0), device),
            learning_rate,
            energy_learning_rate=None,
        )
        try:
            EpochLoop(step, stopping, seed).run(
                training,
                validation,
                max_num_epochs,
                stop_after_epochs,
                clip_max_norm,
                show_progress,
                "Flow follows energy",
            )
        except FloatingPointError as error:
            warnings.warn(f"{error} The flow stays as it was.", stacklevel=3)
    return FollowedFlow(stopping.best_loss, copy_nested(flow.state_dict()))


@contextmanager
def _without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Switch off the gradients of some parameters, and restore them afterwards."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in zip(parameters, before, strict=True):
            parameter.requires_grad_(requires_grad)
