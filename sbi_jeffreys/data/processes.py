"""Several processes that train one pair of models, as `torchrun` starts them.

Each process runs the same script, which first calls
`torch.distributed.init_process_group()`. Each process then trains on its own rows of each
batch. PyTorch's `DistributedDataParallel` averages the gradients. The functions below
average the divergences and the held-out losses. With one process they do nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


def num_processes() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if _initialized() else 1


def process_rank() -> int:
    """Return the rank of this process, counted from zero."""
    return distributed.get_rank() if _initialized() else 0


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean over all processes, the same in each of them."""
    if num_processes() == 1:
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values / num_processes()


def all_have(value: int, device: torch.device | str) -> bool:
    """Return whether `value` is the same in all processes."""
    if num_processes() == 1:
        return True
    bounds = torch.tensor([value, -value], device=device)
    distributed.all_reduce(bounds, distributed.ReduceOp.MIN)
    return bool(bounds[0] == -bounds[1])


@contextmanager
def first_random_state(device: torch.device | str) -> Iterator[None]:
    """Give all processes the random state of the first one within this context.

    This is torch's random state on the CPU. After the context, the other processes have
    their own states again.
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
    """Copy the values of the first process to all others, in place."""
    if num_processes() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def _initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()
