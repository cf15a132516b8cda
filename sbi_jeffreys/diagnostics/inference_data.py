"""Posteriors, samples and simulations in the format of arviz."""

from collections.abc import Mapping
from importlib.metadata import version
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._arviz import Coords, Dims, inference_data
from sbi_jeffreys.diagnostics.draws import draw, given_draws
from sbi_jeffreys.diagnostics.naming import ParameterNames, by_name, columns_of
from sbi_jeffreys.diagnostics.observations import observations
from sbi_jeffreys.diagnostics.predictive import Predictive, Simulator, count_invalid
from sbi_jeffreys.sampling.random_state import random_state

Posterior: TypeAlias = NeuralPosterior | Tensor | np.ndarray
Group: TypeAlias = dict[str, np.ndarray]


def to_inference_data(
    posteriors: Posterior | Mapping[str, Posterior],
    x_o: ArrayLike | None = None,
    *,
    num_samples: int = 4000,
    num_chains: int | None = None,
    parameter_names: ParameterNames = None,
    coords: Coords | None = None,
    dims: Dims | None = None,
    prior: Distribution | None = None,
    simulator: Simulator | None = None,
    num_predictive: int = 1000,
    num_workers: int = 1,
    simulation_batch_size: int = 100,
    seed: int | None = None,
    attrs: Mapping[str, Any] | None = None,
    constants: Mapping[str, ArrayLike] | None = None,
    show_progress_bars: bool = True,
) -> Any:
    r"""Sample posteriors and return the draws in arviz's format.

    All groups but `observed_data` and `constant_data` have the dimensions chain and draw.
    The groups are:

    - `posterior`: the draws. MCMC keeps the chains that were run. Independent draws are
      split into chains.
    - `sample_stats`: `lp` is the log density in nats. It is normalised if the group's
      attribute `lp_is_normalised` is 1. A posterior with both flow and energy adds
      `log_weight`, which is $f - \log p$ in nats, and the numbers of `agreement` as
      attributes, if there is a single observation. Pyro's samplers add `diverging` and
      the chain's mean `acceptance_rate`.
    - `prior`: draws from `prior`, if given.
    - `prior_predictive`, `posterior_predictive`: simulations "x" of the first draws of
      each chain, if `simulator` is given. Where it fails or is interrupted, they are NaN,
      with a warning. The attribute `num_invalid` counts draws that are not all finite.
    - `observed_data`: the observation, under the name "x".
    - `constant_data`: `constants`, if given. Several observations are here, too, under
      the name "x".
    - `log_prior`: the prior's log density at the draws, in nats, under the name
      "all_parameters", if the posterior has a proper prior.
    - `log_likelihood`: a surrogate under the name "x", if the posterior has a proper
      prior. It is the log-ratio at the draws, the log density of the posterior minus
      that of the prior, in nats. For an exact posterior it differs from the log
      likelihood by a constant, the log evidence. Several observations have an axis.

    The method `to_netcdf` of the result needs the packages of
    `pip install 'sbi_jeffreys[export]'`.

    Args:
        posteriors: A posterior of this package or `sbi`, or samples of shape `(N, D)` or
            `(chain, draw, D)`, or several of these by name.
        x_o: The observation, shape `(*x)` or `(1, *x)`. Posteriors that allow it also
            take several observations of the same parameters, shape `(n, *x)`. If no
            posterior knows the shape of x and `x_o` has several axes, the first one is n.
            By default each posterior uses the x of its `set_default_x`.
        num_samples: Draws from each posterior, rounded up to a multiple of the chains,
            and draws from the prior.
        num_chains: Number of chains. By default, MCMC uses the posterior's own number,
            and all others use four.
        parameter_names: None gives one variable, "theta". D names give scalar variables.
            A mapping from names to columns of the samples gives a scalar for an integer
            and a vector for several integers.
        coords: Coordinates of the dimensions, as in arviz.
        dims: Names of the dimensions of vectors and of "x", as in arviz.
        prior: A prior to sample as well.
        simulator: Maps a tensor `(batch, D)` to a tensor `(batch, *x)`. With several
            observations, it is run once for each of them.
        num_predictive: Draws to simulate, from the prior and from each posterior, rounded
            up to a multiple of the chains.
        num_workers: Number of processes that simulate; -1 uses one for each core.
        simulation_batch_size: Parameters in each call of the simulator.
        seed: Makes draws and simulations reproducible. The random states of Python, NumPy
            and torch are restored afterwards. With None, samples are drawn from these
            states.
        attrs: Attributes to add to method, number of simulations, versions and seed.
        constants: Arrays by name, which do not depend on the draws.
        show_progress_bars: Whether to show progress.

    Returns:
        An `InferenceData` (arviz 0.x) or `DataTree` (arviz 1.x). Several posteriors give
        a dictionary of these, which arviz's plots of several models accept.

    Raises:
        TypeError: If something is not a posterior, or `simulator` is not callable.
        Exception: What `simulator` raised, if no simulation of a posterior's draws is
            done. Its attribute `partial` then has the draws, in the form of the result.
        ValueError: If samples are not finite, or if numbers, names or shapes do not fit.
    """
    named = posteriors if isinstance(posteriors, Mapping) else {"": posteriors}
    _check_numbers(
        num_samples=num_samples,
        num_chains=num_chains,
        num_predictive=num_predictive,
        num_workers=None if num_workers == -1 else num_workers,
        simulation_batch_size=simulation_batch_size,
    )
    _check_posteriors(named)
    observed = dict(zip(named, observations(named.values(), x_o), strict=True))
    dim = _dimension(named, prior)
    if dim is not None:  # check names and dimensions before any work
        variables = by_name(np.zeros((1, 1, dim)), columns_of(parameter_names, dim))
        inference_data({"posterior": variables}, coords, dims)
    predict = None
    if simulator is not None:
        predict = Predictive(
            simulator,
            num_predictive,
            num_workers,
            simulation_batch_size,
            show_progress_bars,
        )
    shared: dict[str, Group] = {}
    if prior is not None:
        with random_state(seed, stream=0):
            theta = prior.sample((num_samples,)).cpu().numpy()[None]
            shared["prior"] = by_name(theta, columns_of(parameter_names, theta.shape[-1]))
            if predict is not None:
                x = next(iter(observed.values()))
                shared["prior_predictive"] = {"x": predict(theta, x)}
    results = {}
    error: BaseException | None = None
    for name, posterior in named.items():
        x = observed[name]
        with random_state(seed, stream=1):
            draws = (
                draw(posterior, x, num_samples, num_chains, show_progress_bars)
                if isinstance(posterior, NeuralPosterior)
                else given_draws(posterior)
            )
            columns = columns_of(parameter_names, draws.theta.shape[-1])
            groups = {"posterior": by_name(draws.theta, columns)}
        if draws.stats:
            groups["sample_stats"] = draws.stats
        if predict is not None:
            with random_state(seed, stream=3):
                try:
                    groups["posterior_predictive"] = {"x": predict(draws.theta, x)}
                except BaseException as raised:
                    error = raised
        groups |= _data_groups(x, constants or {})
        if draws.log_prior is not None and draws.log_ratio is not None:
            groups["log_prior"] = {"all_parameters": draws.log_prior}
            groups["log_likelihood"] = {"x": draws.log_ratio}
        about = {"method": type(posterior).__name__, "seed": seed}
        results[name] = inference_data(
            groups | shared,
            coords,
            _with_observations(dims, x),
            {
                "/": about | draws.attrs | _versions() | dict(attrs or {}),
                **({"sample_stats": draws.stats_attrs} if draws.stats else {}),
                **_invalid(groups | shared),
            },
        )
        if error is not None:
            break
    result = results if isinstance(posteriors, Mapping) else results[""]
    if error is not None:
        vars(error)["partial"] = result
        raise error
    return result


def _invalid(groups: Mapping[str, Group]) -> dict[str, dict[str, int]]:
    """Return how many draws of a group have simulations that are not finite, if any."""
    names = [name for name in groups if name.endswith("predictive")]
    counts = {name: count_invalid(groups[name]["x"]) for name in names}
    return {name: {"num_invalid": count} for name, count in counts.items() if count}


def _versions() -> dict[str, str]:
    packages = ("sbi_jeffreys", "sbi", "torch", "arviz", "numpy")
    return {f"{package}_version": version(package) for package in packages}


def _data_groups(
    x: Tensor | None, constants: Mapping[str, ArrayLike]
) -> dict[str, Group]:
    """Return the groups for observations `(n, *x)` and for constants."""
    data = {} if x is None else {"x": (x if len(x) > 1 else x[0]).numpy()}
    constant = dict(data) if x is not None and len(x) > 1 else {}
    constant |= {name: np.asarray(values) for name, values in constants.items()}
    groups = {"observed_data": data, "constant_data": constant}
    return {name: group for name, group in groups.items() if group}


def _with_observations(dims: Dims | None, x: Tensor | None) -> Dims:
    """Return `dims`, with one for several observations if the axes of "x" are named."""
    dims = dict(dims or {})
    if x is not None and len(x) > 1 and len(dims.get("x", ())) == x.ndim - 1:
        dims["x"] = ["observation", *dims["x"]]
    return dims


def _dimension(named: Mapping[str, Posterior], prior: Distribution | None) -> int | None:
    """Return the number of parameters, or None if it is unknown before sampling.

    Raises:
        ValueError: If posteriors and prior have different numbers of parameters.
    """
    dims = set()
    for source in (*named.values(), prior):
        if isinstance(source, Tensor | np.ndarray):
            dims.add(source.shape[-1])
            continue
        if isinstance(source, NeuralPosterior):
            source = getattr(source.potential_fn, "prior", None)
        dims.update(getattr(source, "event_shape", ())[-1:])
    if len(dims) > 1:
        raise ValueError(
            "Expected `posteriors` and `prior` of the same parameters, got "
            f"{sorted(dims)} parameters."
        )
    return next(iter(dims), None)


def _check_posteriors(named: Mapping[str, Posterior]) -> None:
    if not named:
        raise ValueError("Expected `posteriors` to name at least one, got none.")
    for posterior in named.values():
        if isinstance(posterior, Tensor | np.ndarray):
            given_draws(posterior)
        elif not isinstance(posterior, NeuralPosterior):
            raise TypeError(
                "Expected `posteriors` to be a posterior, samples, or a mapping of "
                f"these, got a {type(posterior).__name__}."
            )


def _check_numbers(**numbers: Any) -> None:
    for name, number in numbers.items():
        if number is not None and (not isinstance(number, Integral) or number < 1):
            raise ValueError(f"Expected `{name}` to be a positive integer, got {number}.")
