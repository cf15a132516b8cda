"""Summaries of x: features with independent errors of unit variance.

Features are used one by one, because errors of measurement are often independent, and U
is then diagonal. In other directions U would have more to learn if the sizes of errors
depend on the parameters. Where there are more features than simulations, or some are
linear functions of others, the summaries are leading principal components instead.

Features that are counts, or other multiples of a step, are fitted with uniform noise as
wide as the step (dequantisation; Uria et al., arXiv:1306.0186). Otherwise a density could
become arbitrarily high at values that repeat. Other values that many simulations share
are treated as values of a density, and the likelihood is wrong there. Examples are
censored x and small counts on a log scale (`log_scale`).
"""

import torch
from torch import Tensor, nn

from sbi_jeffreys.pool.regression import least_squares, linear_layer

MAX_SUMMARIES, MIN_PAIRS_PER_SUMMARY = 20, 10
"""There are at most this number of principal components, and at least this number of
pairs for each."""

MAX_ENTRIES = 300
"""Largest number of features that are used one by one."""

MIN_RELATIVE_SPREAD = 0.02
"""A feature is left out if its standard deviation is less than this fraction of the
largest one, and so is a principal component. The fraction is more than `screening` leaves
of entries of x that are unrelated to the parameters."""

RELATIVE_VARIANCE_FLOOR = 1e-6
"""Added to the variances of errors before they are scaled to one, as a fraction of the
mean variance of the summaries."""

MAX_STEP_NUMBER = 10_000
"""Largest number of steps between the smallest and the largest value of a feature."""


def whitened_summaries(
    theta: Tensor, features: Tensor
) -> tuple[Tensor, Tensor, nn.Linear]:
    r"""Return the map to summaries with unit errors about a linear function of $\theta$.

    Args:
        theta: Standardised parameters, shape `(N, D)`.
        features: Features of x, shape `(N, features)`.

    Returns:
        The mean of the features; the projection from features to d summaries, shape
        `(features, d)`; and the linear regression of summaries on parameters.
    """
    num, center = len(features), features.mean(0)
    sizes = (features - center).norm(dim=0)
    wide = sizes >= MIN_RELATIVE_SPREAD * sizes.max()
    kept = (features - center)[:, wide]
    _, spreads, directions = torch.linalg.svd(kept, full_matrices=False)
    count = int((spreads > MIN_RELATIVE_SPREAD * spreads[0]).sum())
    most = max(1, min(MAX_SUMMARIES, num // MIN_PAIRS_PER_SUMMARY))
    are_entries = int(wide.sum()) == count <= max(most, min(MAX_ENTRIES, num))
    num_kept = count if are_entries else max(1, min(count, most))
    rows = features.new_zeros(num_kept, len(sizes))
    rows[:, wide] = torch.eye(count).to(kept) if are_entries else directions[:num_kept]
    s = (features - center) @ rows.T
    fit = least_squares(s, theta)
    residuals = s - fit(theta)
    floor = RELATIVE_VARIANCE_FLOOR * s.square().mean() + torch.finfo(torch.float32).tiny
    covariance = residuals.T @ residuals / num + floor * torch.eye(s.shape[1]).to(s)
    if are_entries:
        covariance = covariance.diagonal().diag_embed()
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    regression = linear_layer(whiten.T @ fit.weight, fit.bias @ whiten)
    return center, rows.T @ whiten, regression


def dequantized(features: Tensor) -> Tensor:
    """Return features with uniform noise added to those that are multiples of a step.

    A step is recognised only where some values repeat, and where rounding can't turn
    arbitrary numbers into multiples.

    Args:
        features: Shape `(N, features)`.
    """
    steps = torch.stack([_step(values) for values in features.double().T])
    if not bool(steps.any()):
        return features
    return features + steps.to(features) * (torch.rand_like(features) - 0.5)


def _step(values: Tensor) -> Tensor:
    """Return the step whose multiples the values, shape `(N,)`, are; 0 without one."""
    gaps = values.unique().diff()
    none = values.new_zeros(())
    if not 0 < len(gaps) < len(values) - 1:
        return none
    multiples = gaps / gaps.min()
    is_step = multiples.sum() < MAX_STEP_NUMBER and torch.allclose(
        multiples, multiples.round(), rtol=0.0, atol=0.01
    )
    return gaps.min() if is_step else none
