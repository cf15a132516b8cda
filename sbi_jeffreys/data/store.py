"""The simulations of a trainer: checked, kept without copies, split and batched."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from sbi.utils import validate_theta_and_x
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    SubsetRandomSampler,
    TensorDataset,
)

from sbi_jeffreys.data.arrays import (
    ConcatenatedRows,
    as_tensor,
    evenly_spaced,
    is_finite,
    rows_at_once,
)
from sbi_jeffreys.data.batches import (
    CalibrationKernel,
    LoadedBatches,
    SlicedBatches,
    StreamedBatches,
)
from sbi_jeffreys.data.checks import (
    check_parameters,
    check_x,
    valid_rows,
    warn_of_scale,
    with_two_axes,
)

OWN_DELIVERY = {"sampler", "batch_sampler", "collate_fn"}
"""Options of a data loader that decide which pairs a batch has, or what it looks like."""


class SimulationStore:
    """Keeps simulations as they were given: tensors, or arrays in memory or on disk.

    Attributes:
        theta: Parameters of each call of `append`, shapes `(N_i, D)`.
        x: Their simulations, shapes `(N_i, ...)`.
        on_disk: Whether some of them are memory-mapped.
        weights: Their weights, shapes `(N_i,)`; None where all are one.
        sources: What their parameters were drawn from, and how many there were before
            those with invalid x were left out.
        training_device: Where networks are trained.
    """

    def __init__(self, training_device: str) -> None:
        """
        Args:
            training_device: Where networks are trained.
        """
        self.training_device = training_device
        self.theta: list[Tensor] = []
        self.x: list[Tensor] = []
        self.on_disk = False
        self.weights: list[Tensor | None] = []
        self.sources: list[tuple[Any, int]] = []

    def __len__(self) -> int:
        return sum(map(len, self.theta))

    def append(
        self,
        theta: Tensor | np.ndarray,
        x: Tensor | np.ndarray,
        prior: Distribution | None,
        exclude_invalid_x: bool,
        data_device: str | None,
        describe: Callable[[Tensor], Any] = lambda theta: None,
    ) -> None:
        """Check simulations and keep them; nothing is kept if a check fails.

        Args:
            theta: Parameters, shape `(N, D)`; or `(N,)` for one parameter.
            x: Simulations, shape `(N, ...)`; or `(N,)` for a number each.
            prior: Its support must contain all parameters; None if there is no prior.
            exclude_invalid_x: Whether simulations with NaN or infinite x are dropped.
            data_device: Where to keep the data; None for the default.
            describe: Maps valid parameters to what they were drawn from, such as a
                `proposals.source.Source`. It may raise errors.

        Raises:
            TypeError: If `theta` or `x` is neither a tensor nor an array, or has no real
                numbers.
            ValueError: If `theta` is empty, not finite or outside of the prior, if no
                simulation is valid, or if shapes or `data_device` differ from those of
                an earlier call, or D from the prior's.
        """
        on_disk = isinstance(theta, np.memmap) or isinstance(x, np.memmap)
        parameters, data = as_tensor("theta", theta), as_tensor("x", x)
        device = self._data_device(data_device, on_disk)
        parameters, data = with_two_axes(parameters), with_two_axes(data)
        check_parameters(parameters, prior, self.training_device)
        check_x(data, len(parameters))
        parameters, data = validate_theta_and_x(
            parameters.float(),
            data.float(),
            data_device=device,
            training_device=self.training_device,
        )
        self._check_shapes(parameters, data)
        valid = None if is_finite(data) else valid_rows(data, exclude_invalid_x)
        source, num = describe(parameters), len(parameters)
        weights = getattr(source, "weights", None)
        if valid is not None:
            parameters, data = parameters[valid], data[valid]
            weights = None if weights is None else weights[valid]
        warn_of_scale(*evenly_spaced(data))
        self.theta.append(parameters)
        self.x.append(data)
        self.weights.append(weights)
        self.sources.append((source, num))
        self.on_disk |= on_disk

    @property
    def is_truncated(self) -> bool:
        """Whether some of them come from a truncated prior."""
        return any(getattr(source, "is_truncated", False) for source, _ in self.sources)

    @property
    def is_sequential(self) -> bool:
        """Whether some of them come from a proposal, and are not just truncated."""
        sources = [source for source, _ in self.sources if source is not None]
        return any(s.density is not None and not s.is_truncated for s in sources)

    @property
    def latest_x(self) -> Tensor | None:
        """The observation that the last proposal is about, or None."""
        found = [getattr(source, "default_x", None) for source, _ in self.sources]
        return next((x for x in reversed(found) if x is not None), None)

    @property
    def row_weights(self) -> Tensor | None:
        """The weights of all simulations, shape `(N,)`; None if all are one."""
        if all(weights is None for weights in self.weights):
            return None
        parts = zip(self.theta, self.weights, strict=True)
        return torch.cat(
            [t.new_ones(len(t)) if weights is None else weights for t, weights in parts]
        )

    def digest(self) -> str:
        """Return a digest of the simulations: of their number, and of 100,000 of them."""
        digest = sha256(str(len(self)).encode())
        for values in (*evenly_spaced(*self.theta), *evenly_spaced(*self.x)):
            digest.update(values.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def tensors(self, starting_round: int = 0) -> tuple[Tensor, Tensor]:
        """Return parameters `(N, D)` and simulations `(N, ...)`.

        They are copies only if simulations were appended more than once.

        Args:
            starting_round: Those of earlier rounds are left out.
        """
        if len(self.theta) == 1 and starting_round == 0:
            return self.theta[0], self.x[0]
        first = sum(number < starting_round for number in self._rounds)
        none = slice(0, 0) if first == len(self.theta) else slice(None)
        theta, x = (parts[first:] or parts[:1] for parts in (self.theta, self.x))
        return torch.cat(theta)[none], torch.cat(x)[none]

    @property
    def _rounds(self) -> list[int]:
        """The round of each call of `append`: 0 as long as there is no proposal."""
        rounds, number = [], 0
        for source, _ in self.sources:
            number += getattr(source, "density", None) is not None
            rounds.append(number)
        return rounds

    def check_enough(self, validation_fraction: float) -> None:
        """Check that networks can be trained and validated on the simulations.

        Args:
            validation_fraction: Fraction of simulations that is held out.

        Raises:
            RuntimeError: If there are no simulations.
            ValueError: If they are too few.
        """
        if not len(self):
            raise RuntimeError(
                "No simulations found: call `append_simulations(theta, x)` before "
                "`train()`."
            )
        num = len(self)
        training = int((1 - validation_fraction) * num)
        if not 0 < training < num:
            raise ValueError(
                "Expected enough simulations to train and to validate on, but "
                f"`validation_fraction={validation_fraction}` of {num} leaves "
                f"{training} to train on and {num - training} to validate on."
            )

    def split(self, validation_fraction: float, start: int = 0) -> tuple[Tensor, Tensor]:
        """Return random rows to train on, and the held-out rows.

        Args:
            validation_fraction: Fraction of simulations that is held out.
            start: The first row; those before are left out.
        """
        num = len(self) - start
        num_training = int((1 - validation_fraction) * num)
        rows = start + torch.randperm(num)
        training, held_out = rows.tensor_split([num_training])
        return training, held_out

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parameters and simulations at `indices`, on the CPU."""
        theta, x = ConcatenatedRows(self.theta), ConcatenatedRows(self.x)
        return theta[indices].to("cpu"), x[indices].to("cpu")

    def rows_to_standardize(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first rows at `indices`, at most 100,000, on the CPU.

        From so many, means and standard deviations are exact to a third of a percent.
        """
        return self.rows(indices[: rows_at_once(self.x[0])])

    def valid_x(self) -> Tensor:
        """Return simulations without infinite entries, evenly spaced ones if many."""
        if not self.x:
            return torch.empty(0)
        x = torch.cat(evenly_spaced(*self.x))
        return x[~x.flatten(1).isinf().any(-1)]

    def batches(
        self,
        indices: Tensor,
        batch_size: int,
        calibration_kernel: CalibrationKernel,
        dataloader_kwargs: dict[str, Any] | None,
    ) -> SlicedBatches | LoadedBatches:
        """Return batches of the pairs at `indices`, on the training device.

        Args:
            indices: Rows of the simulations, shape `(num,)`.
            batch_size: Pairs in a batch, at most all there are.
            calibration_kernel: Weights of simulations, from x to `(batch,)`.
            dataloader_kwargs: As in sbi. With a sampler or a collation of its own, a data
                loader delivers the batches; otherwise they are sliced from the tensors.
        """
        options: dict[str, Any] = {
            "batch_size": min(batch_size, len(indices)),
            "drop_last": True,
        }
        if dataloader_kwargs:
            options |= {"sampler": SubsetRandomSampler(indices.tolist())}
            options |= dataloader_kwargs
            loader = DataLoader(self._dataset(), **options)
            if OWN_DELIVERY & dataloader_kwargs.keys() or loader.batch_size is None:
                if self.row_weights is not None:
                    raise ValueError(
                        "Expected no sampler or collation in `dataloader_kwargs` with "
                        "simulations that have weights, because of their `proposal`."
                    )
                return LoadedBatches(loader, calibration_kernel, self.training_device)
        theta, x = ConcatenatedRows(self.theta), ConcatenatedRows(self.x)
        weights = self.row_weights
        is_far = self.on_disk or torch.device(self.training_device).type != "cpu"
        kind = StreamedBatches if is_far and theta.device.type == "cpu" else SlicedBatches
        return kind(
            theta,
            x,
            indices,
            options["batch_size"],
            options["drop_last"],
            calibration_kernel,
            self.training_device,
            weights,
        )

    def _dataset(self) -> ConcatDataset[Any]:
        """Return parameters, simulations and masks, as sbi's data loaders do."""
        parts = zip(self.theta, self.x, strict=True)
        return ConcatDataset(
            TensorDataset(theta, x, torch.ones(len(theta), 1, dtype=torch.bool))
            for theta, x in parts
        )

    def _data_device(self, data_device: str | None, on_disk: bool) -> str:
        """Return where to keep simulations; all of them are kept in one place."""
        before = [str(theta.device) for theta in self.theta[:1]]
        if data_device is None:
            return before[0] if before else "cpu" if on_disk else self.training_device
        if before and torch.device(data_device).type != torch.device(before[0]).type:
            raise ValueError(
                f"Expected `data_device` to be {before[0]!r}, where the simulations "
                f"appended before are, got {data_device!r}."
            )
        return data_device

    def _check_shapes(self, theta: Tensor, x: Tensor) -> None:
        """Raise a ValueError unless shapes are those of simulations appended before."""
        for name, values, before in (("theta", theta, self.theta), ("x", x, self.x)):
            if before and values.shape[1:] != before[0].shape[1:]:
                raise ValueError(
                    f"Expected `{name}` of shape {('N', *before[0].shape[1:])}, as "
                    f"appended before, got {tuple(values.shape)}."
                )


def unit_weights(x: Tensor) -> Tensor:
    """Return the weights of simulations without a calibration kernel, `(batch,)`."""
    return torch.ones(len(x), device=x.device)
