"""Random numbers that depend on a seed alone and leave the global state unchanged."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import SeedSequence
from sbi.utils.sbiutils import seed_all_backends


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


@contextmanager
def random_state(seed: int | None, stream: int = 0) -> Iterator[None]:
    """Seed Python, NumPy and torch for a while, then restore their states.

    Args:
        seed: Not negative. With None, nothing is seeded or restored. The generators get
            a number derived from the seed, because the data that are analysed may have
            been made with the seed itself.
        stream: Different streams give different random numbers.
    """
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark  # sbi's function sets these flags, too
    try:
        with torch.random.fork_rng():
            seed_all_backends(int(SeedSequence([seed, stream]).generate_state(1)[0]))
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        cudnn.deterministic, cudnn.benchmark = flags
