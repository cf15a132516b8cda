r"""Calibration on held-out simulations: SBC and TARP on the same posterior samples.

Let $(\theta, x)$ be simulated, and let $\theta_1, \dots, \theta_S$ be samples of an exact
posterior given x. For any scalar function $g(\theta, x)$, the rank of $\theta$ among the
samples is then uniform on $0, \dots, S$. Simulation-based calibration (Talts et al.,
arXiv:1804.06788) uses each parameter as g. TARP (Lemos et al., arXiv:2302.03026) uses the
distance from a random reference point, so it tests all parameters together.
"""

import warnings
from collections.abc import Mapping, Sequence
from math import ceil
from typing import overload

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
from sbi_jeffreys.diagnostics.draws import FixedSamples
from sbi_jeffreys.diagnostics.naming import columns_of
from sbi_jeffreys.diagnostics.observations import (
    may_have_nan,
    warn_if_not_amortised,
)
from sbi_jeffreys.diagnostics.ranks import Calibration
from sbi_jeffreys.sampling.random_state import random_state


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
    """Test with SBC and TARP whether posteriors are calibrated.

    Each posterior is sampled once, and both tests use these samples. Sampling is done by
    `sample_batched` for all simulations together. Posteriors that do not support this are
    sampled in `sbi`'s loop. Several posteriors share the reference points of TARP.

    Args:
        posteriors: A posterior of any kind, or several by name.
        theta: Parameters from the prior, shape `(N, D)`, that were not used in training.
            N should be in the hundreds.
        x: Simulations of `theta`, shape `(N, *x)`. Simulations with NaN or infinite
            entries are left out, with a warning. Posteriors trained on x with NaN take
            NaN.
        num_posterior_samples: S, the number of samples for each simulation.
        num_bins: Number of bins of TARP's curve; N // 10 by default.
        parameter_names: D names; "theta_0", "theta_1", ... by default.
        seed: Makes samples and reference points reproducible. The random states of
            Python, NumPy and torch are restored afterwards. With None, samples are drawn
            from these states.
        show_progress_bars: Whether to show progress while sampling.

    Returns:
        A calibration, or a dictionary of calibrations by name.

    Raises:
        TypeError: If a posterior cannot be sampled.
        ValueError: If shapes do not match, if there are fewer than 10 simulations or
            no samples, or if parameters or samples are not finite.
    """
    named = posteriors if isinstance(posteriors, Mapping) else {"": posteriors}
    warn_if_not_amortised(named.values())
    results = calibrations_and_samples(
        named,
        theta,
        x,
        num_posterior_samples=num_posterior_samples,
        num_bins=num_bins,
        parameter_names=parameter_names,
        seed=seed,
        show_progress_bars=show_progress_bars,
    )
    calibrations = {name: calibration for name, (calibration, _) in results.items()}
    return calibrations if isinstance(posteriors, Mapping) else calibrations[""]


def calibrations_and_samples(
    named: Mapping[str, NeuralPosterior],
    theta: ArrayLike,
    x: ArrayLike,
    *,
    num_posterior_samples: int,
    num_bins: int | None,
    parameter_names: Sequence[str] | None,
    seed: int | None,
    show_progress_bars: bool,
) -> dict[str, tuple[Calibration, Tensor]]:
    """Return the calibrations of `calibrate`, and the samples they were made from.

    Args and errors are those of `calibrate`.

    Returns:
        By name, a calibration and samples on the CPU, shape `(S, N, D)`.
    """
    for posterior in named.values():
        if not hasattr(posterior, "sample_batched"):
            raise TypeError(
                "Expected `posteriors` to be a posterior or a mapping of posteriors, got "
                f"{type(posterior).__name__}, which has no `sample_batched`."
            )
    takes_nan = all(map(may_have_nan, named.values()))
    truths, data = fresh_simulations(theta, x, takes_nan)
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
            samples = samples.cpu()
            calibration = _calibration(samples, truths.cpu(), references, num_bins, names)
            results[name] = calibration, samples
    return results


def _calibration(
    samples: Tensor,
    theta: Tensor,
    references: Tensor,
    num_bins: int | None,
    names: tuple[str, ...],
) -> Calibration:
    """Rank parameters `(N, D)` among samples `(S, N, D)`."""
    num, drawn = len(samples), FixedSamples(samples)
    distances = []

    def distance(reference: Tensor, other: Tensor) -> Tensor:
        distances.append(l2(reference, other))
        return distances[-1]

    with warnings.catch_warnings():  # `_check_numbers` has warned
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
    theta: ArrayLike | None, x: ArrayLike | None, takes_nan: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the pairs with finite x, in single precision.

    Args:
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, *x)`. Simulations with NaN or infinite entries are
            left out, with a warning.
        takes_nan: Whether simulations with NaN are kept.

    Raises:
        ValueError: If shapes do not match, one of the two is missing, parameters are not
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
    is_valid = data.isfinite() | (data.isnan() & takes_nan)
    valid = is_valid.flatten(1).all(-1)
    num = int(valid.sum())
    if num < 10:
        raise ValueError(f"Expected at least 10 simulations with finite `x`, got {num}.")
    if takes_nan:
        return truths[valid], data[valid]
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
            f"{num_simulations} simulations reveal only large errors of calibration. Use "
            "100 or more.",
            stacklevel=4,
        )
    enough = ceil(10 * num_simulations**0.5)
    if num_posterior_samples < enough:
        warnings.warn(
            f"With `num_posterior_samples={num_posterior_samples}`, ranks are too coarse "
            f"to test {num_simulations} simulations, and the tests fail too often. Use "
            f"{enough} or more.",
            stacklevel=4,
        )
