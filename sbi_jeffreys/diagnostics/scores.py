"""Scores of a posterior: distance from a reference, and results on fresh simulations."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.utils.metrics import c2st, unbiased_mmd_squared
from scipy.stats import wasserstein_distance
from torch import Tensor

from sbi_jeffreys._sbi import device_of
from sbi_jeffreys.diagnostics.calibration import calibrate

CLASSIFIERS = {"rf": "c2st_random_forest", "mlp": "c2st_mlp"}
NUM_PROJECTIONS = 64
MAX_MMD_SAMPLES = 1000
LEVELS = (0.5, 0.9)
NUM_LEAKAGE_SAMPLES = 1000
"""Draws for each x that estimate how much of a flow is outside the prior."""


def varies(draws: np.ndarray) -> np.ndarray:
    """Return which columns of draws `(N, D)` are not constant, shape `(D,)`.

    Rounding can give a constant column a positive standard deviation. Unlike
    `preprocessing.scaling.varies`, this rule ignores no small differences.
    """
    return np.ptp(draws, 0) > 0


def distances(
    reference: np.ndarray,
    samples: np.ndarray,
    classifiers: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Return distances between samples and a reference.

    Both are first standardised with the mean and standard deviation of the reference.

    Args:
        reference: Shape `(N, D)`.
        samples: Shape `(M, D)`.
        classifiers: Keys of `CLASSIFIERS`. They get equal numbers of both kinds.
        rng: Shuffles the samples and draws the directions of projection.

    Returns:
        Distances by name. `Comparison` describes them.
    """
    mean, sd = reference.mean(0), reference.std(0, ddof=1)
    sd = np.where(varies(reference), sd, 1.0)
    reference, samples = (
        rng.permutation((each - mean) / sd) for each in (reference, samples)
    )
    num = min(len(reference), len(samples))
    x, y = (torch.from_numpy(each[:num]).float() for each in (reference, samples))
    with np.errstate(divide="ignore"):  # constant samples
        log_ratios = np.log(samples.std(0, ddof=1))
    return {
        **{CLASSIFIERS[name]: float(c2st(x, y, classifier=name)) for name in classifiers},
        "sliced_wasserstein": sliced_wasserstein(reference, samples, rng),
        "mmd_squared": float(
            unbiased_mmd_squared(x[:MAX_MMD_SAMPLES], y[:MAX_MMD_SAMPLES])
        ),
        "max_mean_shift": float(abs(samples.mean(0)).max()),
        "mean_sd_ratio": float(np.exp(log_ratios.mean())),
    }


def sliced_wasserstein(
    reference: np.ndarray, samples: np.ndarray, rng: np.random.Generator
) -> float:
    """Return the mean Wasserstein-1 distance of samples projected onto lines.

    Directions are uniform on the sphere (Bonneel et al., J. Math. Imaging Vis. 51, 2015).

    Args:
        reference: Shape `(N, D)`.
        samples: Shape `(M, D)`.
        rng: Draws the 64 directions.
    """
    directions = rng.normal(size=(reference.shape[-1], NUM_PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    pairs = zip((reference @ directions).T, (samples @ directions).T, strict=True)
    return float(np.mean([wasserstein_distance(a, b) for a, b in pairs]))


def held_out_scores(
    posterior: NeuralPosterior,
    theta: Tensor,
    x: Tensor,
    num_posterior_samples: int,
    show_progress_bars: bool = True,
) -> dict[str, float]:
    r"""Return the coverage of central intervals and the negative log-likelihood.

    Args:
        posterior: Any posterior. It is slow without a vectorised `sample_batched`.
        theta: Parameters, shape `(N, D)`.
        x: Simulations of `theta`, shape `(N, *x)`.
        num_posterior_samples: Draws for each simulation.
        show_progress_bars: Whether to show progress.

    Returns:
        A dictionary with four entries. `coverage_50` and `coverage_90` are fractions,
        averaged over parameters. `nll` is the mean of $-\log p(\theta | x)$ in nats, and
        `nll_se` is its standard error. Both are NaN if the posterior has no
        `log_prob_batched`.
    """
    device = device_of(posterior)
    theta, x = theta.to(device), x.to(device)
    with warnings.catch_warnings():  # they are about tests that are not used
        warnings.filterwarnings("ignore", "With .* simulations")
        warnings.filterwarnings("ignore", ".* simulations reveal only")
        calibration = calibrate(
            posterior,
            theta,
            x,
            num_posterior_samples=num_posterior_samples,
            show_progress_bars=show_progress_bars,
        )
    coverages = calibration.coverage(LEVELS).coverage.mean(-1)
    names = (f"coverage_{round(100 * level)}" for level in LEVELS)
    scores = dict(zip(names, coverages.tolist(), strict=True))
    log_prob = held_out_log_prob(posterior, theta, x)
    if log_prob is None:
        return scores | {"nll": torch.nan, "nll_se": torch.nan}
    nll, standard_error = mean_and_se(-log_prob)
    return scores | {"nll": nll, "nll_se": standard_error}


@torch.no_grad()
def held_out_log_prob(
    posterior: NeuralPosterior, theta: Tensor, x: Tensor
) -> Tensor | None:
    """Return the log density of each true parameter, in nats.

    Args:
        posterior: Any posterior.
        theta: Parameters, shape `(N, D)`, on the posterior's device.
        x: Simulations of `theta`, shape `(N, *x)`, on the posterior's device.

    Returns:
        Shape `(N,)`, or None if the posterior has no `log_prob_batched`.
    """
    if not hasattr(posterior, "log_prob_batched"):
        return None
    options = {}
    if isinstance(posterior, DirectPosterior):
        options["leakage_correction_params"] = {
            "num_rejection_samples": NUM_LEAKAGE_SAMPLES
        }
    return posterior.log_prob_batched(theta[None], x, **options)[0]


def mean_and_se(values: Tensor) -> tuple[float, float]:
    """Return the mean of values `(N,)` and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
