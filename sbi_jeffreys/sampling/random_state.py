"""Random numbers that depend on a seed alone, and leave those outside as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators of the CPU and of one device, meanwhile.

    `torch.manual_seed` would seed all CUDA devices, of which others may be in use.

    Args:
        device: Beside the CPU.
        seed: Of both.
    """
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
