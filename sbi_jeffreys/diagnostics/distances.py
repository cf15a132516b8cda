"""Distances of samples from those of a reference."""

from collections.abc import Sequence

import numpy as np
import torch
from sbi.utils.metrics import c2st, unbiased_mmd_squared
from scipy.stats import wasserstein_distance

CLASSIFIERS = {"rf": "c2st_random_forest", "mlp": "c2st_mlp"}
NUM_PROJECTIONS = 64
MAX_MMD_SAMPLES = 1000


def distances(
    reference: np.ndarray,
    samples: np.ndarray,
    classifiers: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Return how samples differ from the reference, by whose moments they are scaled.

    Args:
        reference: Shape `(N, D)`.
        samples: Shape `(M, D)`.
        classifiers: Of `CLASSIFIERS`; they see as many of the one as of the other.
        rng: Shuffles, and draws directions.

    Returns:
        By name, see `Comparison`.
    """
    mean, sd = reference.mean(0), reference.std(0, ddof=1)
    sd = np.where(np.ptp(reference, 0) > 0, sd, 1.0)  # that of equal numbers is rounding
    reference, samples = (
        rng.permutation((each - mean) / sd) for each in (reference, samples)
    )
    num = min(len(reference), len(samples))
    x, y = (torch.from_numpy(each[:num]).float() for each in (reference, samples))
    with np.errstate(divide="ignore"):  # of constant samples
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
        rng: Draws 64 directions.
    """
    directions = rng.normal(size=(reference.shape[-1], NUM_PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    pairs = zip((reference @ directions).T, (samples @ directions).T, strict=True)
    return float(np.mean([wasserstein_distance(a, b) for a, b in pairs]))
