"""sbi's trainer, but one that keeps simulations where they are, without copies."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from sbi.inference import NPE_C
from sbi.utils import (
    RestrictedPrior,
    handle_invalid_x,
    npe_msg_on_invalid_x,
    test_posterior_net_for_multi_d_x,
    validate_theta_and_x,
    warn_if_invalid_for_zscoring,
)
from sbi.utils.sbiutils import ImproperEmpirical, mask_sims_from_prior, within_support
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    SubsetRandomSampler,
    TensorDataset,
)
from typing_extensions import Self

from sbi_jeffreys.data.arrays import (
    ConcatenatedRows,
    as_tensor,
    check_finite,
    evenly_spaced,
    is_finite,
    rows_at_once,
)


class UncopiedSimulations(NPE_C):
    """Stores simulations, splits them, and builds networks from as many as it takes."""

    _prior: Any
    _neural_net: Any
    _on_disk = False
    train_indices: Any = ()
    val_indices: Any = ()

    def append_simulations(
        self,
        theta: Tensor | np.ndarray,
        x: Tensor | np.ndarray,
        proposal: Any = None,
        exclude_invalid_x: bool | None = None,
        data_device: str | None = None,
    ) -> Self:
        """Store simulations; as in `sbi`, those with NaN or infinite x are left out.

        Entries that a NumPy array masks are taken for NaN.

        Nothing is copied: tensors and arrays are kept as they are (do not change them
        meanwhile), and a memory-mapped array (`numpy.memmap`, or `numpy.load(path,
        mmap_mode="r")`) stays on disk, from where a thread gathers each batch while the
        one before is used. Other arrays on disk (zarr, HDF5) are to be written to such a
        file first. If some rows are invalid, the valid ones are copied to memory; a
        pickled trainer holds a copy of all. Networks are standardised by at most
        100,000 rows.

        Args:
            theta: Parameters, shape `(N, D)`, float32.
            x: Simulations, shape `(N, ...)`, float32.
            proposal: None, the prior, or a `RestrictedPrior` made from the prior, from
                which `theta` were drawn.
            exclude_invalid_x: Whether to drop simulations with NaN or infinite x, the
                default; kept, they need a `density_estimator` that can embed them.
            data_device: Where to keep the data; by default where training takes place,
                but memory-mapped arrays on disk. With "cpu", training on a GPU copies
                the next batches there during a step.

        Raises:
            NotImplementedError: For another proposal: multi-round corrections of the
                loss are not known for the Jeffreys objective.
            TypeError: If `theta` or `x` is neither a tensor nor a float32 array.
            ValueError: If there are none; if some `theta` are not finite, or outside of
                the prior; or if shapes or `data_device` are others than in an earlier
                call.
        """
        restricted = isinstance(proposal, RestrictedPrior)
        if not (
            proposal is None
            or proposal is self._prior
            or (restricted and proposal._prior is self._prior)
        ):
            raise NotImplementedError(
                "JNPE trains on simulations from the prior, or from a `RestrictedPrior` "
                f"made from it, but `proposal` is a {type(proposal).__name__}, and not "
                "the object that JNPE was given (after loading a saved trainer, leave "
                "`proposal` out for simulations from the prior). To focus on one x_o, "
                "truncate: `RestrictedPrior(prior, "
                "get_density_thresholder(posterior), sample_with='rejection')`."
            )
        on_disk = isinstance(theta, np.memmap) or isinstance(x, np.memmap)
        theta, x = self._valid_simulations(
            as_tensor("theta", theta),
            as_tensor("x", x),
            exclude_invalid_x is not False,
            self._data_device(data_device, on_disk),
        )
        self._check_proposal(proposal)

        self._on_disk |= on_disk
        self._theta_roundwise.append(theta)
        self._x_roundwise.append(x)
        self._prior_masks.append(mask_sims_from_prior(0, len(theta)))
        self._data_round_index.append(0)
        self._proposal_roundwise.append(proposal)
        if self._prior is None or isinstance(self._prior, ImproperEmpirical):
            values = torch.cat(evenly_spaced(*self._theta_roundwise))
            weights = torch.ones(len(values), device=self._device)
            self._prior = ImproperEmpirical(values.to(self._device), weights)
        return self

    def _data_device(self, data_device: str | None, on_disk: bool) -> str:
        """Return where to keep simulations; all of them are kept in one place."""
        before = [str(theta.device) for theta in self._theta_roundwise[:1]]
        if data_device is None:
            return before[0] if before else "cpu" if on_disk else self._device
        if before and torch.device(data_device).type != torch.device(before[0]).type:
            raise ValueError(
                f"Expected `data_device` to be {before[0]!r}, where simulations appended "
                f"before are, got {data_device!r}."
            )
        return data_device

    def get_simulations(self, starting_round: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return all parameters `(N, D)`, simulations `(N, ...)` and masks `(N, 1)`.

        They are not copies, unless simulations were appended more than once.

        Args:
            starting_round: As in `sbi`; all simulations belong to round 0.
        """
        if starting_round == 0 and len(self._theta_roundwise) == 1:
            return self._theta_roundwise[0], self._x_roundwise[0], self._prior_masks[0]
        return super().get_simulations(starting_round)

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
    ) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return loaders of training and held-out rows, as `sbi` does without copies.

        Args:
            starting_round: Without effect; all simulations belong to round 0.
            training_batch_size: Pairs in a batch, at most all there are.
            validation_fraction: Fraction of simulations held out.
            resume_training: Whether to keep the last split.
            dataloader_kwargs: Override those of the loaders.
        """
        dataset: ConcatDataset[Any] = ConcatDataset(
            TensorDataset(*tensors)
            for tensors in zip(
                self._theta_roundwise, self._x_roundwise, self._prior_masks, strict=True
            )
        )
        if not resume_training:
            order = torch.randperm(len(dataset))
            num_training = int((1 - validation_fraction) * len(dataset))
            self.train_indices, self.val_indices = order.tensor_split([num_training])
        splits = self.train_indices, self.val_indices
        # Tensors take a fifth of the memory, but workers of a loader want integers.
        samples = [
            rows.tolist() if dataloader_kwargs else cast(Sequence[int], rows)
            for rows in splits
        ]
        training, validation = (
            DataLoader(
                dataset,
                **{
                    "batch_size": min(training_batch_size, len(indices)),
                    "drop_last": True,
                    "sampler": SubsetRandomSampler(rows),
                    **(dataloader_kwargs or {}),
                },
            )
            for indices, rows in zip(splits, samples, strict=True)
        )
        return training, validation

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int
    ) -> None:
        """Build the networks as `sbi` does, from at most 100,000 training pairs.

        Means and standard deviations are exact to a third of a percent then.
        """
        if self._neural_net is not None and not retrain_from_scratch:
            return
        rows = self.train_indices[: rows_at_once(self._x_roundwise[0])]
        theta, x = (
            ConcatenatedRows(parts)[rows].to("cpu")
            for parts in (self._theta_roundwise, self._x_roundwise)
        )
        self._neural_net = self._build_neural_net(theta, x)
        test_posterior_net_for_multi_d_x(self._neural_net, theta.unsqueeze(0), x)

    def _valid_simulations(
        self, theta: Tensor, x: Tensor, exclude_invalid_x: bool, data_device: str
    ) -> tuple[Tensor, Tensor]:
        """Return the simulations to keep, uncopied where all of them are valid."""
        self._check_parameters(theta)
        theta, x = validate_theta_and_x(
            theta, x, data_device=data_device, training_device=self._device
        )
        self._check_shapes(theta, x)
        if not (len(x) and is_finite(x)):
            valid, *counts = handle_invalid_x(x, exclude_invalid_x=exclude_invalid_x)
            npe_msg_on_invalid_x(*counts, exclude_invalid_x, "Single-round JNPE")
            if exclude_invalid_x:
                theta, x = theta[valid], x[valid]
        warn_if_invalid_for_zscoring(*evenly_spaced(x))
        return theta, x

    def _check_parameters(self, theta: Tensor) -> None:
        if theta.ndim == 0 or not len(theta):
            raise ValueError(
                "Expected `theta` of at least one simulation, (num_simulations, D), got "
                f"shape {tuple(theta.shape)}."
            )
        check_finite("`theta`", theta)
        if self._prior is not None and not isinstance(self._prior, ImproperEmpirical):
            outside = sum(
                int((~within_support(self._prior, chunk.to(self._device))).sum())
                for chunk in theta.split(rows_at_once(theta))
            )
            if outside:
                raise ValueError(
                    "Expected parameters inside the support of the prior, but "
                    f"{outside} of {len(theta)} `theta` are outside. Pass the prior that "
                    "they were drawn from."
                )

    def _check_shapes(self, theta: Tensor, x: Tensor) -> None:
        """Raise a ValueError unless shapes are those of simulations appended before."""
        appended = {"theta": (theta, self._theta_roundwise), "x": (x, self._x_roundwise)}
        for name, (values, before) in appended.items():
            if before and values.shape[1:] != before[0].shape[1:]:
                raise ValueError(
                    f"Expected `{name}` of shape {('N', *before[0].shape[1:])}, as "
                    f"appended before, got {tuple(values.shape)}."
                )
