"""How posteriors fare on simulations that they were not trained on."""

import warnings

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor

from sbi_jeffreys.diagnostics.calibration import calibrate

LEVELS = (0.5, 0.9)
NUM_LEAKAGE_SAMPLES = 1000
"""Draws for each x that tell how much of a flow is outside of the prior."""


def held_out_scores(
    posterior: NeuralPosterior,
    theta: Tensor,
    x: Tensor,
    num_posterior_samples: int,
    show_progress_bars: bool = True,
) -> dict[str, float]:
    r"""Return coverage of central intervals, and the negative log-likelihood.

    Args:
        posterior: Any; without a vectorised `sample_batched` it takes long.
        theta: Parameters, shape `(N, D)`.
        x: Their simulations, shape `(N, *x)`.
        num_posterior_samples: Draws for each simulation.
        show_progress_bars: Whether to show progress.

    Returns:
        `coverage_50` and `coverage_90`, fractions, means over parameters; `nll`, the mean
        $-\log p(\theta | x)$ in nats, and `nll_se`, its standard error: NaN of
        posteriors without `log_prob_batched`.
    """
    device = posterior._device
    theta, x = theta.to(device), x.to(device)
    with warnings.catch_warnings():  # of tests, which these numbers are not put to
        warnings.filterwarnings("ignore", "With .* simulations")
        calibration = calibrate(
            posterior,
            theta,
            x,
            num_posterior_samples=num_posterior_samples,
            show_progress_bars=show_progress_bars,
        )
    coverages = calibration.coverage(LEVELS).coverage.mean(-1)
    names = (f"coverage_{round(100 * level)}" for level in LEVELS)
    return dict(zip(names, coverages.tolist(), strict=True)) | _nll(posterior, theta, x)


@torch.no_grad()
def _nll(posterior: NeuralPosterior, theta: Tensor, x: Tensor) -> dict[str, float]:
    if not hasattr(posterior, "log_prob_batched"):
        return {"nll": torch.nan, "nll_se": torch.nan}
    options = {}
    if isinstance(posterior, DirectPosterior):
        options["leakage_correction_params"] = {
            "num_rejection_samples": NUM_LEAKAGE_SAMPLES
        }
    nll = -posterior.log_prob_batched(theta[None], x, **options)[0]
    return {"nll": float(nll.mean()), "nll_se": float(nll.std() / len(nll) ** 0.5)}
