"""A forgotten `proposal=`: parameters that can't be a sample of the prior.

Each parameter, and the sum and the difference of each pair, is compared with samples of
the prior by the test of Kolmogorov and Smirnov. Parameters are first replaced by their
ranks among samples of the prior. The smallest p-value is multiplied by the number of
tests (Bonferroni), so that the false-alarm rate is at most `FALSE_ALARMS`.
"""

import warnings
from itertools import combinations

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.sampling.random_state import seeded

FALSE_ALARMS = 1e-4
"""Probability of a warning if the parameters are a sample of the prior."""

NUM_PRIOR_SAMPLES, MAX_PARAMETERS = 10_000, 2_000
"""Samples of the prior, and most parameters, that are compared."""

FEWEST = 10
"""Smallest number of parameters that are compared."""


def prior_p_value(theta: Tensor, prior: Distribution) -> float:
    """Return the p-value of parameters under the prior, at most one.

    Args:
        theta: Parameters, shape `(N, D)`.
        prior: The prior.
    """
    with seeded(theta.device, 0):
        drawn = prior.sample(torch.Size((NUM_PRIOR_SAMPLES,)))
    half = NUM_PRIOR_SAMPLES // 2
    samples = drawn.reshape(NUM_PRIOR_SAMPLES, -1).cpu().numpy()
    chosen = torch.linspace(0, len(theta) - 1, min(len(theta), MAX_PARAMETERS)).long()
    reference, compared = np.sort(samples[:half], axis=0), samples[half:]
    ranks, prior_ranks = (
        np.stack([np.searchsorted(*p) for p in zip(reference.T, values.T, strict=True)]).T
        for values in (theta[chosen].cpu().numpy(), compared)
    )
    dim = ranks.shape[1]
    directions = np.concatenate(
        [np.eye(dim)]
        + [
            np.eye(dim)[[i]] + sign * np.eye(dim)[[j]]
            for i, j in combinations(range(dim), 2)
            for sign in (1, -1)
        ]
    )
    values = [
        ks_2samp(ranks @ direction, prior_ranks @ direction, method="asymp").pvalue
        for direction in directions
    ]
    return min(1.0, len(directions) * float(min(values)))


def warn_if_not_from_prior(theta: Tensor, prior: Distribution) -> None:
    """Warn if parameters can't be a sample of the prior.

    Args:
        theta: Parameters, shape `(N, D)`.
        prior: The prior, which may have no `sample`.
    """
    if len(theta) < FEWEST or not hasattr(prior, "sample"):
        return
    p_value = prior_p_value(theta, prior)
    if p_value < FALSE_ALARMS:
        warnings.warn(
            f"`theta` are not a sample of the prior (p = {p_value:.1g}). If they come "
            "from a proposal, pass `proposal=` to `append_simulations`; the posterior is "
            "wrong otherwise.",
            stacklevel=4,
        )
