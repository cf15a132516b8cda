"""Several processes that train one pair of models, as `torchrun` starts them.

Each process calls the same script. Once it has called
`torch.distributed.init_process_group()`, training takes its rows of each batch, averages
gradients by PyTorch's `DistributedDataParallel`, and divergences and held-out losses by
the functions below. With one process they do nothing.
"""

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


def share_random_state() -> None:
    """Give all processes the first one's random state (torch's, on the CPU)."""
    if num_processes() > 1:
        state = [torch.get_rng_state()]
        distributed.broadcast_object_list(state)
        torch.set_rng_state(state[0])


def share_tensors(tensors: list[Tensor]) -> None:
    """Give all processes the first one's values."""
    if num_processes() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def _initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()
