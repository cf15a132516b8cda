"""Several processes that train one pair of models, as `torchrun` starts them.

Each process calls the same script. Once it has called
`torch.distributed.init_process_group()`, training takes its rows of each batch, averages
gradients by PyTorch's `DistributedDataParallel`, and divergences and held-out losses by
the functions below. With one process they do nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


def num_processes() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if _initialized() else 1


def process_rank() -> int:
    """Return the number of this process, from zero."""
    return distributed.get_rank() if _initialized() else 0


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of what each process has, the same in all of them."""
    if num_processes() == 1:
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values / num_processes()


def all_have(value: int, device: torch.device | str) -> bool:
    """Return whether a number is the same in all processes."""
    if num_processes() == 1:
        return True
    bounds = torch.tensor([value, -value], device=device)
    distributed.all_reduce(bounds, distributed.ReduceOp.MIN)
    return bool(bounds[0] == -bounds[1])


@contextmanager
def first_random_state(device: torch.device | str) -> Iterator[None]:
    """Meanwhile, give all processes the first one's random state (torch's, on the CPU).

    Afterwards the others go on from where theirs was.
    """
    if num_processes() == 1:
        yield
        return
    own = torch.get_rng_state()
    state = [own]
    distributed.broadcast_object_list(state, device=torch.device(device))
    torch.set_rng_state(state[0])
    try:
        yield
    finally:
        if process_rank() > 0:
            torch.set_rng_state(own)


def share_tensors(tensors: list[Tensor]) -> None:
    """Give all processes the first one's values."""
    if num_processes() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def _initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()
