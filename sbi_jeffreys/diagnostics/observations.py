"""Give observations a batch axis, which users may leave out."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import ArrayLike
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor


def observations(posteriors: Iterable[Any], x_o: ArrayLike | None) -> list[Tensor | None]:
    """Return the observations of each posterior, shape `(n, *x)`.

    Args:
        posteriors: Posteriors, or samples of them.
        x_o: Shape `(*x)` or `(n, *x)`. If no posterior knows the shape of x and `x_o` has
            several axes, the first one is n. None uses each posterior's default.

    Returns:
        An entry for each posterior. It is None for samples if `x_o` is None.

    Raises:
        ValueError: If `x_o` has the wrong shape or is not finite, or if a posterior has
            no default.
    """
    posteriors = list(posteriors)
    shapes = map(condition_shape, posteriors)
    shape = next((shape for shape in shapes if shape is not None), None)
    result: list[Tensor | None] = []
    for posterior in posteriors:
        x = x_o
        if x is None and isinstance(posterior, NeuralPosterior):
            x = posterior.default_x
            if x is None:
                raise ValueError(
                    f"Expected `x_o`: {type(posterior).__name__} has no default x."
                )
        if x is not None:
            x = _with_batch_axis(x, shape, any(map(may_have_nan, posteriors)))
        result.append(x)
    return result


def warn_if_not_amortised(posteriors: Iterable[Any]) -> None:
    """Warn if a posterior is not meant for x of the prior.

    Args:
        posteriors: Posteriors. Those of `sbi` are not judged.
    """
    if not all(getattr(posterior, "is_amortised", True) for posterior in posteriors):
        warnings.warn(
            "The posterior is of several rounds. It is meant for x near its observation, "
            "and simulations from the prior do not tell how good it is there.",
            stacklevel=3,
        )


def condition_shape(posterior: Any) -> torch.Size | None:
    """Return the shape of one x, or None if the posterior does not know it."""
    for holder, name in (
        (posterior, "posterior_estimator"),
        (posterior, "vector_field_estimator"),
        (getattr(posterior, "potential_fn", None), "energy"),
        (getattr(posterior, "potential_fn", None), "posterior_estimator"),
    ):
        shape = getattr(getattr(holder, name, None), "condition_shape", None)
        if shape is not None:
            return torch.Size(shape)
    return None


def may_have_nan(posterior: Any) -> bool:
    """Return whether a posterior was trained on x with NaN, and takes such x."""
    flow = getattr(getattr(posterior, "pair", None), "flow", None)
    flow = getattr(posterior, "posterior_estimator", flow)
    return bool(getattr(flow, "has_nan", False))


def _with_batch_axis(x_o: ArrayLike, shape: torch.Size | None, has_nan: bool) -> Tensor:
    x = torch.as_tensor(x_o, dtype=torch.float32).detach().cpu()
    if bool(x.isinf().any()) or not (has_nan or bool(x.isfinite().all())):
        raise ValueError("Expected `x_o` to be finite, got NaN or infinite values.")
    if shape is None:
        return torch.atleast_2d(x)
    if x.shape[x.ndim - len(shape) :] != shape or x.ndim > len(shape) + 1:
        raise ValueError(
            f"Expected `x_o` of shape {tuple(shape)}, with or without a batch axis, got "
            f"{tuple(x.shape)}."
        )
    return x.reshape(-1, *shape)
