"""Everything that this package takes from arviz, for both of its kinds.

`arviz` 0.x is one package. Its `from_dict` takes the groups as arguments and returns an
`InferenceData`. `arviz` 1.x needs Python 3.12 or later and consists of `arviz_base`,
`arviz_stats` and others. Its `from_dict` takes one nested dictionary and returns xarray's
`DataTree`. This module imports arviz when it is first used. It needs neither torch nor
the rest of this package.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Groups = Mapping[str, Mapping[str, np.ndarray]]
Coords = Mapping[str, Sequence[Any]]
Dims = Mapping[str, Sequence[str]]


def load_arviz() -> ModuleType:
    """Import arviz without its warnings about future versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0
        import arviz
    return arviz


class _Arviz0:
    """arviz 0.x."""

    def __init__(self) -> None:
        self.arviz = load_arviz()

    def psis(self, log_weights: np.ndarray) -> tuple[np.ndarray, float]:
        """Return smoothed, normalised log weights `(N,)`, of `(N,)`, and k̂."""
        return self.arviz.psislw(log_weights)

    def from_groups(self, groups: Groups, coords: Coords, dims: Dims) -> Any:
        """Return arviz's container. The arguments are those of `inference_data`."""
        plain = {name: dict(variables) for name, variables in groups.items()}
        return self.arviz.from_dict(**plain, coords=coords, dims=dims)

    def hdi(self, draws: np.ndarray, prob: float) -> np.ndarray:
        """Return the bounds `(2,)` of the interval for draws `(N,)`."""
        return self.arviz.hdi(draws, hdi_prob=prob)

    def ess_bulk(self, draws: np.ndarray) -> float:
        """Return the effective number of draws `(chain, draw)`."""
        return self.arviz.ess(draws, method="bulk")

    def r_hat(self, draws: np.ndarray) -> float:
        """Return the rank-normalised split R̂ of draws `(chain, draw)`."""
        return self.arviz.rhat(draws, method="rank")


class _Arviz1:
    """arviz 1.x, with the same methods."""

    def __init__(self) -> None:
        import arviz_base
        from arviz_stats.base import array_stats

        self.base, self.stats = arviz_base, array_stats

    def psis(self, log_weights: np.ndarray) -> tuple[np.ndarray, float]:
        return self.stats.psislw(-log_weights)  # it expects log likelihoods

    def from_groups(self, groups: Groups, coords: Coords, dims: Dims) -> Any:
        return self.base.from_dict(groups, coords=coords, dims=dims)

    def hdi(self, draws: np.ndarray, prob: float) -> np.ndarray:
        return self.stats.hdi(draws, prob)

    def ess_bulk(self, draws: np.ndarray) -> float:
        return self.stats.ess(draws, method="bulk")

    def r_hat(self, draws: np.ndarray) -> float:
        return self.stats.rhat(draws, method="rank")


@cache
def library() -> _Arviz0 | _Arviz1:
    """Return the arviz that is installed, imported at the first call."""
    return _Arviz0() if int(load_arviz().__version__.split(".")[0]) < 1 else _Arviz1()


def inference_data(
    groups: Groups,
    coords: Coords | None = None,
    dims: Dims | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Return groups of variables in arviz's container.

    Args:
        groups: Arrays by name of the variable, by name of the group. Their first two axes
            are chain and draw, unless the group's name contains "data".
        coords: Coordinates of each dimension.
        dims: Names of each variable's dimensions, without chain and draw.
        attrs: Attributes by name of the group. The name "/" stands for the whole. Values
            other than text and numbers become text, because netCDF needs it. None is left
            out.

    Returns:
        An `InferenceData` (arviz 0.x) or `DataTree` (1.x).
    """
    with warnings.catch_warnings():  # about more chains than draws
        warnings.filterwarnings("ignore", "More chains|Found chain dimension")
        data = library().from_groups(groups, dict(coords or {}), dict(dims or {}))
    for name, values in (attrs or {}).items():
        group = data if name == "/" else data[name]
        group.attrs.update(
            {k: _plain(value) for k, value in values.items() if value is not None}
        )
    return data


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
    arviz, parameters = library(), np.moveaxis(draws, -1, 0).astype(float)
    few = length < 4
    nan = np.full(len(parameters), np.nan)
    with np.errstate(all="ignore"):
        bounds = np.array([arviz.hdi(each.ravel(), hdi_prob) for each in parameters])
        return Summary(
            mean=parameters.mean((1, 2)),
            sd=parameters.std((1, 2), ddof=1),
            hdi_low=bounds[:, 0],
            hdi_high=bounds[:, 1],
            ess_bulk=nan if few else np.array([arviz.ess_bulk(p) for p in parameters]),
            r_hat=nan
            if few or chains < 2
            else np.array([arviz.r_hat(p) for p in parameters]),
        )


def is_inference_data(value: Any) -> bool:
    """Return whether a value is an `InferenceData` or a `DataTree`."""
    return type(value).__name__ in ("InferenceData", "DataTree")


def labelled_draws(data: Any) -> tuple[list[str], np.ndarray]:
    """Return the posterior's draws as one array, and a label for each parameter.

    Args:
        data: An `InferenceData` or `DataTree`.

    Returns:
        P labels, such as "rate" and "theta[0]", and draws, shape `(chain, draw, P)`.

    Raises:
        ValueError: If there is no group "posterior".
    """
    if "posterior" not in data:
        raise ValueError(f"Expected a group 'posterior', got {list(data)}.")
    labels, columns = [], []
    for name, variable in data["posterior"].data_vars.items():
        variable = variable.transpose("chain", "draw", ...)
        columns.append(variable.values.reshape(*variable.shape[:2], -1))
        axes = [variable[dim].values for dim in variable.dims[2:]]
        labels += [
            f"{name}[{', '.join(map(str, each))}]" if each else str(name)
            for each in product(*axes)
        ]
    return labels, np.concatenate(columns, -1)
