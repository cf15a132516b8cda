"""The preparation of x for the networks, and what is asked of an embedding network."""

from copy import deepcopy

import torch
from sbi.utils.sbiutils import Standardize
from torch import Tensor, nn

from sbi_jeffreys.preprocessing.log_scale import LogScale
from sbi_jeffreys.preprocessing.scaling import as_precise_as, location_and_scale
from sbi_jeffreys.preprocessing.screening import Screening, related_to
from sbi_jeffreys.preprocessing.training_range import TrainingRange

MOST_TRIED = 100
"""Most simulations with NaN or infinite entries on which an embedding is tried."""


def standardizing_embedding(
    theta: Tensor,
    x: Tensor,
    embedding_net: nn.Module | None,
    name: str = "embedding_net",
) -> nn.Module:
    """Return a network that standardises x, keeps it in range, and embeds it.

    Args:
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, *condition_shape)`. Each entry is standardised.
        embedding_net: Applied to standardised x within its `TrainingRange`. By default x
            is standardised on its `LogScale`, and `Screening` is applied last.
        name: The name of that argument, for errors.

    Raises:
        ValueError: If features of x have not the shape `(batch, features)`, or are not
            finite.
    """
    if embedding_net is not None:
        standardize = Standardize(*location_and_scale(x))
        in_range = TrainingRange(standardize(x))
        embed = as_precise_as(x, nn.Sequential(standardize, in_range, embedding_net))
        check_features(f"`{name}`", embed, x)
        return embed
    log_scale, screening = LogScale(x), Screening(related_to(theta, x))
    logs = log_scale(x)
    standardize = Standardize(*location_and_scale(logs))
    in_range = TrainingRange(standardize(logs))
    embed = nn.Sequential(log_scale, standardize, in_range, screening)
    embed = as_precise_as(x, embed)
    check_features("the default embedding of x", embed, x)
    return embed


def check_features(what: str, embed: nn.Module, x: Tensor) -> None:
    """Raise a ValueError unless a network maps x to finite features, `(batch, features)`.

    A copy of it is tried on two simulations, and on some that are not finite.

    Args:
        what: What the network is, for the error.
        embed: The network.
        x: Simulations, shape `(N, *condition_shape)`.
    """
    is_odd = ~x.flatten(1).isfinite().all(-1)
    tried = torch.cat([x[:2], x[is_odd][:MOST_TRIED]])
    try:
        with torch.no_grad():
            features = deepcopy(embed).to(x.device).eval()(tried)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise ValueError(
            f"Expected {what} to take x of shape {('batch', *x.shape[1:])}, but it "
            f"raises: {error}"
        ) from error
    is_tensor = isinstance(features, Tensor)
    if not is_tensor or features.ndim != 2 or len(features) != len(tried):
        got = tuple(features.shape) if is_tensor else f"a {type(features).__name__}"
        raise ValueError(
            f"Expected {what} to return features of shape (batch, features) for x of "
            f"shape {tuple(tried.shape)}, got {got}."
        )
    if features.dtype != x.dtype:
        raise ValueError(
            f"Expected {what} to return features of dtype {x.dtype}, got "
            f"{features.dtype}."
        )
    bad = int((~features.isfinite().all(-1)).sum())
    if bad:
        raise ValueError(
            f"Expected {what} to return finite features, got NaN or infinite ones for "
            f"{bad} of {len(tried)} simulations tried, {len(tried) - len(x[:2])} of "
            "them with NaN or infinite entries. Leave these out "
            "(`exclude_invalid_x=True`), or embed x by a network that knows them."
        )
