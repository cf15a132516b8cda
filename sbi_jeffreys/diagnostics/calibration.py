r"""Calibration on held-out simulations: SBC and TARP, from the same posterior samples.

With $(\theta, x)$ simulated and $\theta_1, \dots, \theta_S$ drawn from an exact posterior
given x, the rank of $\theta$ among the draws, in any one number $g(\theta, x)$, is
uniform on $0, \dots, S$. Simulation-based calibration (Talts et al., arXiv:1804.06788)
takes each parameter for g; TARP (Lemos et al., arXiv:2302.03026) the distance from a
random reference point, which sees all parameters together.
"""

import warnings
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, overload

import torch
from numpy.typing import ArrayLike
from sbi.diagnostics import check_tarp, run_sbc, run_tarp
from sbi.diagnostics.sbc import check_uniformity_frequentist
from sbi.diagnostics.tarp import get_tarp_references
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.utils.diagnostics_utils import (
    get_posterior_samples_on_batch,
    remove_nans_and_infs_in_x,
)
from sbi.utils.metrics import l2
from torch import Tensor

from sbi_jeffreys.data.arrays import check_finite
from sbi_jeffreys.diagnostics.draws import random_state
from sbi_jeffreys.diagnostics.naming import columns_of
from sbi_jeffreys.diagnostics.ranks import Calibration


@overload
def calibrate(
    posteriors: Mapping[str, NeuralPosterior],
    theta: ArrayLike,
    x: ArrayLike,
    *,
    num_posterior_samples: int = ...,
    num_bins: int | None = ...,
    parameter_names: Sequence[str] | None = ...,
    seed: int | None = ...,
    show_progress_bars: bool = ...,
) -> dict[str, Calibration]: ...


@overload
def calibrate(
    posteriors: NeuralPosterior,
    theta: ArrayLike,
    x: ArrayLike,
    *,
    num_posterior_samples: int = ...,
    num_bins: int | None = ...,
    parameter_names: Sequence[str] | None = ...,
    seed: int | None = ...,
    show_progress_bars: bool = ...,
) -> Calibration: ...


def calibrate(
    posteriors: NeuralPosterior | Mapping[str, NeuralPosterior],
    theta: ArrayLike,
    x: ArrayLike,
    *,
    num_posterior_samples: int = 1000,
    num_bins: int | None = None,
    parameter_names: Sequence[str] | None = None,
    seed: int | None = None,
    show_progress_bars: bool = True,
) -> Calibration | dict[str, Calibration]:
    """Check with SBC and TARP whether posteriors are calibrated, from one set of samples.

    Each posterior is sampled once, for all simulations together, by `sample_batched`; if
    it has none, by `sbi`'s loop. Several posteriors share TARP's reference points.

    Args:
        posteriors: One, of any kind, or several by name.
        theta: Parameters from the prior, shape `(N, D)`, that no posterior was trained
            on. Hundreds are needed.
        x: Their simulations, shape `(N, *x)`. Those with NaN or infinite entries are left
            out, with a warning.
        num_posterior_samples: S, drawn for each simulation.
        num_bins: Of TARP's curve; N // 10 by default.
        parameter_names: Of length D; "theta_0", "theta_1", ... by default.
        seed: Makes samples and reference points reproducible, and leaves the random
            states of Python, NumPy and torch as they were; None draws from these.
        show_progress_bars: Whether to show progress while sampling.

    Returns:
        One calibration, or one for each name.

    Raises:
        TypeError: If a posterior cannot be sampled.
        ValueError: If shapes do not match, or there are fewer than 10 simulations, or
            no samples, or some parameters or samples are not finite.
    """
    named = posteriors if isinstance(posteriors, Mapping) else {"": posteriors}
    for posterior in named.values():
        if not hasattr(posterior, "sample_batched"):
            raise TypeError(
                "Expected `posteriors` to be a posterior or a mapping of posteriors, got "
                f"{type(posterior).__name__}, which has no `sample_batched`."
            )
    truths, data = fresh_simulations(theta, x)
    names = _names(parameter_names, truths.shape[1])
    _check_numbers(len(truths), num_posterior_samples, num_bins)
    with random_state(seed):
        references = get_tarp_references(truths.cpu())
        results = {}
        for name, posterior in named.items():
            samples = get_posterior_samples_on_batch(
                data,
                posterior,
                (num_posterior_samples,),
                show_progress_bar=show_progress_bars,
            )
            whose = f" of the posterior {name!r}" if name else ""
            check_finite(f"samples{whose}", samples.flatten(0, 1))
            results[name] = _calibration(
                samples.cpu(), truths.cpu(), references, num_bins, names
            )
    return results if isinstance(posteriors, Mapping) else results[""]


class _Drawn:
    """Samples already made, in the place of the posterior that `sbi` would sample."""

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples

    def sample_batched(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.samples


def _calibration(
    samples: Tensor,
    theta: Tensor,
    references: Tensor,
    num_bins: int | None,
    names: tuple[str, ...],
) -> Calibration:
    """Rank parameters `(N, D)` among samples `(S, N, D)`."""
    num, drawn = len(samples), _Drawn(samples)
    distances = []

    def distance(reference: Tensor, other: Tensor) -> Tensor:
        distances.append(l2(reference, other))
        return distances[-1]

    with warnings.catch_warnings():  # one of our own was enough
        warnings.filterwarnings("ignore", "Number of .* samples .* order of 100s")
        ranks, _ = run_sbc(theta, theta, drawn, num, show_progress_bar=False)
        ecp, alpha = run_tarp(
            theta,
            theta,
            drawn,
            references,
            num,
            show_progress_bar=False,
            distance=distance,
            num_bins=num_bins,
        )
    of_samples, of_theta = distances
    atc, tarp_p_value = check_tarp(ecp, alpha)
    return Calibration(
        parameter_names=names,
        num_posterior_samples=num,
        ranks=ranks,
        tarp_ranks=(of_samples < of_theta).sum(0).to(ranks),
        ks_p_values=check_uniformity_frequentist(ranks, num),
        ecp=ecp,
        alpha=alpha,
        tarp_atc=atc,
        tarp_p_value=float(tarp_p_value),
    )


def fresh_simulations(
    theta: ArrayLike | None, x: ArrayLike | None
) -> tuple[Tensor, Tensor]:
    """Return the pairs of which x is finite, in single precision.

    Args:
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, *x)`. Those with NaN or infinite entries are left out,
            with a warning.

    Raises:
        ValueError: If shapes do not match, one is missing, some parameters are not
            finite, or fewer than ten simulations are left.
    """
    if theta is None or x is None:
        missing = "theta" if theta is None else "x"
        raise ValueError(f"Expected both `theta` and `x`, got no `{missing}`.")
    truths, data = (torch.as_tensor(given, dtype=torch.float32) for given in (theta, x))
    if truths.ndim != 2 or data.shape[:1] != truths.shape[:1]:
        raise ValueError(
            "Expected `theta` of shape (N, D) and `x` of shape (N, *x), got "
            f"{tuple(truths.shape)} and {tuple(data.shape)}."
        )
    check_finite("`theta`", truths)
    num = int(data.flatten(1).isfinite().all(-1).sum())
    if num < 10:
        raise ValueError(f"Expected at least 10 simulations with finite `x`, got {num}.")
    return remove_nans_and_infs_in_x(truths, data)


def _names(parameter_names: Sequence[str] | None, dim: int) -> tuple[str, ...]:
    if parameter_names is None:
        return tuple(f"theta_{i}" for i in range(dim))
    return tuple(columns_of(parameter_names, dim))


def _check_numbers(
    num_simulations: int, num_posterior_samples: int, num_bins: int | None
) -> None:
    """Raise a ValueError if there are no samples, and warn if there are few."""
    if num_posterior_samples < 1 or (num_bins is not None and num_bins < 2):
        raise ValueError(
            "Expected `num_posterior_samples` of at least 1 and `num_bins` of at least "
            f"2, got {num_posterior_samples} and {num_bins}."
        )
    if num_simulations < 100:
        warnings.warn(
            f"With {num_simulations} simulations only gross errors of calibration show. "
            "Use 100 or more.",
            stacklevel=3,
        )
    enough = ceil(10 * num_simulations**0.5)
    if num_posterior_samples < enough:
        warnings.warn(
            f"With `num_posterior_samples={num_posterior_samples}`, ranks are too coarse "
            f"for tests on {num_simulations} simulations, which will fail too often. Use "
            f"{enough} or more.",
            stacklevel=3,
        )
