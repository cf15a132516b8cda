"""Random numbers that depend on a seed alone and leave the global state unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the generators of the CPU and of one device inside a `with` block.

    `torch.manual_seed` would seed all CUDA devices, and other programs may use them.

    Args:
        device: The device beside the CPU.
        seed: The seed of both.
    """
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
