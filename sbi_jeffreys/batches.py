"""Batches of simulations, on the training device."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset
from torch.utils.data.dataloader import default_collate


class Batch(NamedTuple):
    """Parameters `(batch, D)`, simulations `(batch, ...)`, their weights `(batch,)`."""

    theta: Tensor
    x: Tensor
    weights: Tensor


CalibrationKernel = Callable[[Tensor], Tensor]


class Batches(Protocol):
    """What the training loop asks of its data."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch of training."""

    def shuffled(self) -> Iterator[Batch]:
        """Yield the batches of an epoch of training."""

    def ordered(self) -> Iterator[Batch]:
        """Yield every pair once."""


class SlicedBatches:
    """Batches cut by index from tensors that stay where they are."""

    def __init__(
        self,
        theta: Tensor,
        x: Tensor,
        indices: Tensor,
        batch_size: int,
        drop_last: bool,
        calibration_kernel: CalibrationKernel,
        device: torch.device | str,
    ) -> None:
        self.theta, self.x = theta, x
        self.indices = indices.to(theta.device)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.calibration_kernel = calibration_kernel
        self.device = device

    def __len__(self) -> int:
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def shuffled(self) -> Iterator[Batch]:
        """Yield batches in a new random order."""
        order = torch.randperm(len(self.indices), device=self.indices.device)
        batches = self.indices[order].split(self.batch_size)
        return map(self._take, batches[: len(self)])

    def ordered(self) -> Iterator[Batch]:
        """Yield every pair once, in order."""
        return map(self._take, self.indices.split(self.batch_size))

    def _take(self, indices: Tensor) -> Batch:
        x = self.x[indices].to(self.device)
        return Batch(self.theta[indices].to(self.device), x, self.calibration_kernel(x))


class LoadedBatches:
    """Batches as a data loader delivers them."""

    def __init__(
        self,
        loader: DataLoader[Any],
        calibration_kernel: CalibrationKernel,
        device: torch.device | str,
    ) -> None:
        self.loader = loader
        self.calibration_kernel = calibration_kernel
        self.device = device

    def __len__(self) -> int:
        return len(self.loader)

    def shuffled(self) -> Iterator[Batch]:
        """Yield what the loader yields."""
        for theta, x, *_ in self.loader:
            x = x.to(self.device)
            yield Batch(theta.to(self.device), x, self.calibration_kernel(x))

    def ordered(self) -> Iterator[Batch]:
        """Yield what the loader yields."""
        return self.shuffled()


def batches_from(
    loader: DataLoader[Any],
    calibration_kernel: CalibrationKernel,
    device: torch.device | str,
) -> Batches:
    """Return the batches of sbi's data loader, which would collate them row by row.

    Where the loader's sampler and collation are sbi's own, the same batches are sliced
    from its tensors; otherwise the loader is used.
    """
    if (
        isinstance(loader.dataset, TensorDataset)
        and type(loader.sampler) is SubsetRandomSampler
        and loader.collate_fn is default_collate
        and loader.batch_size is not None
    ):
        theta, x, *_ = loader.dataset.tensors
        return SlicedBatches(
            theta,
            x,
            torch.as_tensor(loader.sampler.indices),
            loader.batch_size,
            loader.drop_last,
            calibration_kernel,
            device,
        )
    return LoadedBatches(loader, calibration_kernel, device)
