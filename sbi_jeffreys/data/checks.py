"""What is asked of parameters and simulations before they are stored, and of x_o."""

import logging
import warnings
from typing import Any

import torch
from sbi.utils import warn_if_invalid_for_zscoring
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import unrestricted
from sbi_jeffreys.data.arrays import check_finite, rows_at_once

logger = logging.getLogger(__name__)


def with_two_axes(values: Tensor) -> Tensor:
    """Return values of shape `(N,)` as `(N, 1)`, and others as they are."""
    return values.unsqueeze(1) if values.ndim == 1 else values


def check_parameters(
    theta: Tensor, prior: Distribution | None, device: torch.device | str
) -> None:
    """Raise a ValueError unless parameters can be samples of a prior.

    Args:
        theta: Parameters, shape `(N, D)`, of any precision.
        prior: The prior; None if there is none.
        device: Where the prior is.
    """
    if theta.ndim != 2 or not theta.numel():
        raise ValueError(
            "Expected `theta` of shape (num_simulations, D), with at least one "
            f"simulation, got {tuple(theta.shape)}."
        )
    check_finite("`theta`", theta.float())
    if prior is None:
        return
    dim = _num_parameters(prior)
    if theta.shape[1] != dim:
        raise ValueError(
            f"Expected `theta` of shape (num_simulations, {dim}), as the prior has "
            f"{dim} parameters, got {tuple(theta.shape)}."
        )
    outside = sum(
        int((~within_support(prior, chunk.to(device))).sum())
        for chunk in theta.split(rows_at_once(theta))
    )
    if outside:
        raise ValueError(
            "Expected parameters inside the support of the prior, but "
            f"{outside} of {len(theta)} `theta` are outside. Pass the prior that "
            "they were drawn from."
        )
    some = theta[:2].to(device)
    log_prob = unrestricted(prior).log_prob(some)
    if log_prob.numel() != len(some):
        raise ValueError(
            f"Expected `prior.log_prob` to return shape ({len(some)},), a number for "
            f"each of `theta`, got {tuple(log_prob.shape)}."
        )


def check_x(x: Tensor, num: int) -> None:
    """Raise a ValueError unless x, `(N, ...)`, are `num` simulations with entries."""
    if x.ndim < 2 or len(x) != num or not x.numel():
        raise ValueError(
            f"Expected `x` of shape ({num}, ...), a simulation for each of `theta`, got "
            f"{tuple(x.shape)}."
        )


def check_observations(x: Tensor, may_have_nan: bool) -> None:
    """Raise a ValueError if observations are infinite, or have NaN that is not allowed.

    Args:
        x: Observations, shape `(batch, *condition_shape)`.
        may_have_nan: Whether NaN stands for a missing entry, as in training.
    """
    if bool(x.isinf().any()):
        raise ValueError("Expected a finite observation `x`, got infinite entries.")
    if not may_have_nan and bool(x.isnan().any()):
        bad = int(x.isnan().flatten(1).any(-1).sum())
        raise ValueError(
            f"Expected an observation `x` without NaN, got NaN in {bad} of {len(x)}. NaN "
            "may stand for missing entries if training had simulations with NaN, too: "
            "`append_simulations(..., exclude_invalid_x=False)`, with a network that "
            "embeds them."
        )


def valid_rows(x: Tensor, exclude_invalid: bool) -> Tensor | None:
    """Log how many simulations are invalid; return the rows of the others.

    Args:
        x: Simulations, shape `(N, ...)`.
        exclude_invalid: Whether to leave out the invalid ones.

    Returns:
        Booleans, shape `(N,)`; None if none is left out.

    Raises:
        ValueError: If all would be left out.
    """
    rows = x.flatten(1)
    has_nan, has_inf = rows.isnan().any(-1), rows.isinf().any(-1)
    found = f"Found {has_nan.sum()} NaN simulations and {has_inf.sum()} Inf simulations."
    if not exclude_invalid:
        logger.warning(
            f"{found} They are kept, due to `exclude_invalid_x=False`. The embedding of "
            "x has to map them to finite features."
        )
        return None
    valid = ~(has_nan | has_inf)
    if not bool(valid.any()):
        raise ValueError(
            f"Expected `x` with at least one finite simulation, got {len(x)} that all "
            "have NaN or infinite entries. If NaN stands for missing trials, set "
            "`exclude_invalid_x=False` and embed x by a network that knows NaN."
        )
    logger.warning(f"{found} They will be excluded from training.")
    return valid


def warn_of_scale(x: Tensor) -> None:
    """Warn of simulations that are hard to standardise, by sbi's rules.

    Args:
        x: Simulations, shape `(N, ...)`.
    """
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_if_invalid_for_zscoring(x)
    for warning in found:  # `z_score_x` is no argument of `JNPE`
        text = str(warning.message).replace(" or setting `z_score_x='none'`", "")
        text = text.replace(" (though this may affect training)", "")
        warnings.warn(text, UserWarning, stacklevel=4)


def _num_parameters(prior: Any) -> int:
    """Return the number of parameters, also if a prior does not declare its shape."""
    prior = unrestricted(prior)
    shape = prior.batch_shape + prior.event_shape
    if not shape:
        with torch.random.fork_rng(devices=[]):
            shape = prior.sample(torch.Size((1,))).shape[1:]
    return shape.numel()
