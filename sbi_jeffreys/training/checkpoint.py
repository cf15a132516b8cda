"""Copies of all that training continues from, taken after each epoch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class RandomState(NamedTuple):
    """States of torch's random number generators.

    Attributes:
        cpu: State of the CPU's generator.
        cuda: State of a CUDA device's generator, or None without such a device.
    """

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        """Return the present states, on the CPU and on `device`."""
        on_cuda = device.type == "cuda"
        return cls(
            torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_cuda else None
        )

    def restore(self, device: torch.device) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


class Checkpoint(NamedTuple):
    """What training continues from.

    Attributes:
        epoch: Number of epochs trained.
        best_weights: State of the pair after the best epoch.
        states: Copies of the states of the step and of the stopping rule.
        random_state: The random states; None before the first epoch, when training is
            seeded instead.
    """

    epoch: int
    best_weights: dict[str, Tensor]
    states: list[dict[str, Any]]
    random_state: RandomState | None


def copy_nested(state: Any) -> Any:
    """Copy nested dicts and lists of tensors, which is much faster than `deepcopy`."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: copy_nested(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copy_nested(value) for value in state]
    return state
