"""Everything that this package takes from arviz.

`arviz_base` arranges groups of variables, and `arviz_stats` computes. Both are used alike
from version 0.8 on. Only the container that users get depends on the version of `arviz`
itself: an `InferenceData` with 0.x, xarray's `DataTree` with 1.x. This module imports
each of them when it is first used. It needs neither torch nor the rest of this package.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Groups = Mapping[str, Mapping[str, np.ndarray]]
Coords = Mapping[str, Sequence[Any]]
Dims = Mapping[str, Sequence[str]]


@cache
def release(package: str) -> tuple[int, ...]:
    """Return the first two numbers of an installed package's version."""
    return tuple(int(part) for part in version(package).split(".")[:2])


def load_arviz() -> ModuleType:
    """Import arviz without its warnings about future versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0
        import arviz
    return arviz


@cache
def _statistics() -> Any:
    """Return arviz's statistics of arrays."""
    from arviz_stats.base import array_stats

    return array_stats


def psis(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Return smoothed, normalised log weights `(N,)`, of `(N,)`, and k̂."""
    return _statistics().psislw(-log_weights)  # it expects log likelihoods


def hdi(draws: np.ndarray, prob: float) -> np.ndarray:
    """Return the bounds `(2,)` of the narrowest interval for draws `(N,)`."""
    return _statistics().hdi(draws, prob)


def kde(draws: np.ndarray, bounded: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the density of draws.

    Args:
        draws: Shape `(N,)`.
        bounded: Whether the density may end abruptly at the range of the draws, as a
            posterior does at the bounds of a prior. If not, it has tails beyond.

    Returns:
        A grid and the density on it, both of shape `(G,)`.
    """
    tails = {} if bounded else {"bound_correction": False, "extend_fct": 0.5}
    grid, density, _ = _statistics().kde(draws, extend=not bounded, **tails)
    return grid, density


def bandwidth(draws: np.ndarray) -> float:
    """Return the width of a Gaussian kernel for draws `(N,)`, which may have modes.

    It is by the improved method of Sheather and Jones (Botev et al., 2010).
    """
    return float(_statistics().kde(draws, bw="isj")[2])


def non_uniform(pit: np.ndarray, level: float) -> np.ndarray:
    """Return which of N numbers show that they are not uniform on (0, 1).

    It is the test `pot_c` of order statistics, which arviz recommends (Tesso et al.,
    arXiv:2603.02928). arviz-stats has it from version 1.1 on.

    Args:
        pit: Numbers in (0, 1), shape `(N,)`.
        level: Probability that uniform numbers fail.

    Returns:
        Which numbers stand out, shape `(N,)`. None does if the test passes, or if
        arviz-stats does not have it.
    """
    if release("arviz-stats") < (1, 1):
        return np.zeros(len(pit), dtype=bool)
    p_value, _, shares = _statistics().uniformity_test(pit, method="pot_c")
    return (shares > 0) & (p_value < level)


def inference_data(
    groups: Groups,
    coords: Coords | None = None,
    dims: Dims | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Return groups of variables in arviz's container.

    Args:
        groups: Arrays by name of the variable, by name of the group. Their first two axes
            are chain and draw, unless the group's name contains "data". Variables of
            "log_likelihood" may lack the axes that `dims` names.
        coords: Coordinates of each dimension.
        dims: Names of each variable's dimensions, without chain and draw.
        attrs: Attributes by name of the group. The name "/" stands for the whole. Values
            other than text and numbers become text, because netCDF needs it. None is left
            out.

    Returns:
        An `InferenceData` (arviz 0.x) or `DataTree` (1.x).
    """
    from arviz_base import from_dict

    with warnings.catch_warnings():  # about more chains than draws
        warnings.filterwarnings("ignore", "More chains|Found chain dimension")
        tree = from_dict(groups, coords=dict(coords or {}), dims=dict(dims or {}))
    for name, values in (attrs or {}).items():
        tree[name].attrs.update(
            {k: _plain(value) for k, value in values.items() if value is not None}
        )
    if release("arviz") >= (1, 0):
        return tree
    datasets = {name: node.to_dataset() for name, node in tree.children.items()}
    return load_arviz().InferenceData(attrs=tree.attrs, **datasets)


def _plain(value: Any) -> str | int | float:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, str | int | float) else str(value)


class Summary(NamedTuple):
    """Summary of P parameters. Every field has the shape `(P,)`.

    Attributes:
        mean: Posterior mean.
        sd: Posterior standard deviation.
        hdi_low: Lower bound of the narrowest interval of the given probability.
        hdi_high: Upper bound of that interval.
        ess_bulk: Effective number of draws; NaN for fewer than four draws per chain.
        r_hat: Rank-normalised split R̂; NaN for fewer than four draws per chain or for a
            single chain.
    """

    mean: np.ndarray
    sd: np.ndarray
    hdi_low: np.ndarray
    hdi_high: np.ndarray
    ess_bulk: np.ndarray
    r_hat: np.ndarray


def summary(draws: np.ndarray, hdi_prob: float = 0.94) -> Summary:
    """Summarise draws of parameters.

    Args:
        draws: Shape `(chain, draw, P)`.
        hdi_prob: Probability in the highest-density interval, in (0, 1).

    Raises:
        ValueError: If the shape is wrong or `hdi_prob` is not in (0, 1).
    """
    if draws.ndim != 3 or not draws.shape[0] * draws.shape[1]:
        raise ValueError(
            f"Expected `draws` of shape (chain, draw, P), got {draws.shape}."
        )
    if not 0 < hdi_prob < 1:
        raise ValueError(f"Expected `hdi_prob` to be in (0, 1), got {hdi_prob}.")
    chains, length, _ = draws.shape
    parameters = np.moveaxis(draws, -1, 0).astype(float)
    few = length < 4
    nan = np.full(len(parameters), np.nan)
    with np.errstate(all="ignore"):
        bounds = np.array([hdi(each.ravel(), hdi_prob) for each in parameters])
        return Summary(
            mean=parameters.mean((1, 2)),
            sd=parameters.std((1, 2), ddof=1),
            hdi_low=bounds[:, 0],
            hdi_high=bounds[:, 1],
            ess_bulk=nan if few else _statistics().ess(parameters, method="bulk"),
            r_hat=nan
            if few or chains < 2
            else _statistics().rhat(parameters, method="rank"),
        )


def is_inference_data(value: Any) -> bool:
    """Return whether a value is an `InferenceData` or a `DataTree`."""
    return type(value).__name__ in ("InferenceData", "DataTree")


def labelled_draws(
    data: Any, var_names: Sequence[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Return the posterior's draws as one array, and a label for each parameter.

    Args:
        data: An `InferenceData` or `DataTree`.
        var_names: The variables to take, in this order; all by default.

    Returns:
        P labels, such as "rate" and "theta[0]", and draws, shape `(chain, draw, P)`.

    Raises:
        ValueError: If there is no group "posterior".
    """
    if "posterior" not in data:
        raise ValueError(f"Expected a group 'posterior', got {list(data)}.")
    labels, columns = [], []
    for name in data["posterior"].data_vars if var_names is None else var_names:
        variable = data["posterior"][name].transpose("chain", "draw", ...)
        columns.append(variable.values.reshape(*variable.shape[:2], -1))
        axes = [variable[dim].values for dim in variable.dims[2:]]
        labels += [
            f"{name}[{', '.join(map(str, each))}]" if each else str(name)
            for each in product(*axes)
        ]
    return labels, np.concatenate(columns, -1)
