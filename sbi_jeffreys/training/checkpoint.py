"""Copies of all that training continues from, taken after each epoch."""

from math import inf
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

    @classmethod
    def of_plain(cls, state: dict[str, Any], device: torch.device) -> "Checkpoint":
        """Return what `as_plain` made plain, with the states of the step on a device."""
        random_state = state["random_state"]
        return cls(
            state["epoch"],
            copy_nested(state["best_weights"], device),
            copy_nested(state["states"], device),
            random_state and RandomState(**random_state),
        )


class FollowedFlow(NamedTuple):
    """A flow that followed an energy.

    Attributes:
        loss: Its held-out negative log-likelihood, in nats.
        weights: Its state.
        was_interrupted: Whether it would have gone on.
    """

    loss: float
    weights: dict[str, Tensor]
    was_interrupted: bool = False


class Pooling(NamedTuple):
    """What pooling is redone from after an interrupt, with the same result.

    Attributes:
        weights: State of the pair when pooling began.
        flow_loss: Held-out negative log-likelihood of its flow, in nats.
        has_converged: Whether the networks' training ended by itself.
        epoch: Number of epochs trained when the pool's weights were last chosen.
        loss: The pool's loss on held-out pairs then, in nats; infinite before the first
            time.
        goes_on: Whether the networks go on after that.
    """

    weights: dict[str, Tensor]
    flow_loss: float
    has_converged: bool
    epoch: int
    loss: float = inf
    goes_on: bool = True


class Unfinished(NamedTuple):
    """What a call of `train` that was interrupted began with.

    Attributes:
        epoch: Number of epochs trained before it.
        followed: The flow that was kept before it, or None.
        pooling: What its pooling is redone from; None if it did not come so far.
    """

    epoch: int
    followed: FollowedFlow | None
    pooling: Pooling | None = None

    @classmethod
    def of_plain(cls, state: dict[str, Any]) -> "Unfinished":
        """Return what `as_plain` made plain."""
        followed, pooling = state["followed"], state["pooling"]
        return cls(
            state["epoch"],
            followed and FollowedFlow(**followed),
            pooling and Pooling(**pooling),
        )


def as_plain(state: Any) -> Any:
    """Return named tuples as dicts, also those inside of others."""
    if hasattr(state, "_asdict"):
        return {key: as_plain(value) for key, value in state._asdict().items()}
    return state


def copy_nested(state: Any, device: torch.device | None = None) -> Any:
    """Copy nested dicts and lists of tensors, which is much faster than `deepcopy`.

    Args:
        state: What to copy.
        device: Where the copies are; None for where the tensors are.
    """
    if isinstance(state, Tensor):
        return state.clone() if device is None else state.to(device, copy=True)
    if isinstance(state, dict):
        return {key: copy_nested(value, device) for key, value in state.items()}
    if isinstance(state, list):
        return [copy_nested(value, device) for value in state]
    return state
