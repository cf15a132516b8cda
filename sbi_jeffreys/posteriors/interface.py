"""The parts of sbi's posterior interface that both posteriors share."""

import warnings
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, Self

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils.torchutils import ensure_theta_batched, process_device
from torch import Tensor

from sbi_jeffreys._sbi import device_of, x_or_default
from sbi_jeffreys.data.arrays import check_finite
from sbi_jeffreys.data.checks import check_observations
from sbi_jeffreys.diagnostics.agreement import AgreementReport
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.posteriors.trust import TrustCheck


class OwnPotential(NeuralPosterior):
    """A posterior whose `potential` changes no observation that other threads use."""

    def potential(
        self, theta: Tensor, x: Tensor | None = None, track_gradients: bool = False
    ) -> Tensor:
        """Return unnormalised log densities in nats, shape `(N,)`.

        Args:
            theta: Parameters, shape `(N, D)`.
            x: One observation, or several of the same parameters; by default that of
                `set_default_x`.
            track_gradients: Whether the result is differentiable to `theta`.
        """
        theta = ensure_theta_batched(torch.as_tensor(theta)).to(device_of(self))
        potential = self._given(x_or_default(self, x))
        return potential(theta, track_gradients=track_gradients)

    def _given(self, x: Tensor) -> Any:
        """Return a copy of the potential that has an observation of its own."""
        potential = copy(self.potential_fn)
        potential.set_x(x)
        return potential


class TrustedPosterior(OwnPotential):
    """A posterior that tells whether it can be trusted at an observation.

    It checks observations itself. A subclass provides `_conditions`.

    Attributes:
        max_sampling_batch_size: Most draws of the flow at a time.
        show_progress_bars: Whether methods show progress where a call does not say it.
        corrects: Whether samples of the flow are corrected by the energy.
    """

    max_sampling_batch_size: int
    show_progress_bars: bool = True
    corrects: bool = False
    _trust: TrustCheck
    _map: Tensor | None

    @property
    def novelty(self) -> Novelty | None:
        """What compares observations with the simulations, or None."""
        return self._trust.novelty

    def forget_simulations(self) -> None:
        """Remove the simulations that the posterior holds, at most 1,000, in place.

        It then gives no warning where x is unlike the simulations, and `agreement` has no
        p-value of x. Samples and densities stay the same.
        """
        self._trust.novelty = None

    def agreement(
        self, x: Tensor | None = None, num_samples: int = 2_000
    ) -> AgreementReport:
        """Return how flow and energy agree at each observation. Print it to read it.

        Each observation is judged by itself. Where k̂ > 0.7, draws go in steps from the
        flow to the energy, which takes longer. A warning is given once for each posterior
        where its samples are not reliable: those of the flow where k̂ > 0.7, corrected
        ones where these steps are not reliable.

        Args:
            x: Observations, shape `(batch, *condition_shape)`; by default that of
                `set_default_x`.
            num_samples: Draws from the flow for each observation, at least 100.

        Raises:
            ValueError: If there are too few samples, or there is no observation.
            RuntimeError: If there is no energy, or no draw of the flow is inside the
                prior.
        """
        conditions = x_or_default(self, x).to(device_of(self))
        report = self._trust.report(conditions, num_samples, self.max_sampling_batch_size)
        if self.corrects:
            self._trust.warn_of_steps(report.steps_are_reliable)
        else:
            self._trust.warn_of_tail(report.pareto_k)
        return report

    def shows(self, show_progress_bars: bool | None) -> bool:
        """Return whether to show progress; None stands for the default."""
        if show_progress_bars is None:
            return self.show_progress_bars
        return show_progress_bars

    def _conditions(self, x: Any) -> Tensor:
        """Return observations that were checked, shape `(batch, *condition_shape)`."""
        raise NotImplementedError

    def set_default_x(self, x: Any) -> Self:
        """Set the observations that methods take by default, and return the posterior.

        Args:
            x: Shape `(*condition_shape)` or `(n, *condition_shape)`.

        Raises:
            ValueError: If they are not finite; RuntimeError if their shape is wrong.
        """
        self._x = self._conditions(x).to(self._device)
        self._map = None
        return self

    def _x_else_default_x(self, x: Any) -> Tensor:
        if x is not None:
            return self._conditions(x)
        if self._x is None:
            raise ValueError(
                "Expected an observation `x`, as the default has not been set: pass `x`, "
                "or call `.set_default_x(x)` before."
            )
        return self._x

    def map(
        self,
        x: Tensor | None = None,
        num_iter: int = 1_000,
        num_to_optimize: int = 100,
        learning_rate: float = 0.01,
        init_method: str | Tensor = "posterior",
        num_init_samples: int = 1_000,
        save_best_every: int = 10,
        show_progress_bars: bool = False,
        force_update: bool = False,
    ) -> Tensor:
        """Return the parameters of highest density given the default x, shape `(1, D)`.

        They are remembered until the default changes.

        Args:
            x: No longer an argument in sbi; use `set_default_x`.
            num_iter: Steps of gradient ascent.
            num_to_optimize: Number of starting points, the best of those drawn.
            learning_rate: Learning rate of the ascent.
            init_method: "posterior" draws starting points; or parameters `(N, D)`.
            num_init_samples: Number of draws.
            save_best_every: Steps after which the best point is looked for.
            show_progress_bars: Whether to show progress.
            force_update: Whether to ascend again.

        Raises:
            ValueError: If there is no default x, if `x` is given, or if `init_method` is
                neither "posterior" nor finite parameters.
        """
        if x is not None:
            raise ValueError(
                "Expected no `x`: set it by `.set_default_x(x)`, then call `.map()`."
            )
        check_start(init_method)
        self._x_else_default_x(None)
        if self._map is not None and not force_update:
            return self._map
        start = init_method
        if isinstance(start, str) and start == "posterior":
            shape = torch.Size((num_init_samples,))
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                start = self.sample(shape, show_progress_bars=show_progress_bars)
            for warning in found:  # which shall point at the caller of this method
                warnings.warn(warning.message, stacklevel=2)
        assert isinstance(start, Tensor)
        best: Tensor = super().map(
            num_iter=num_iter,
            num_to_optimize=num_to_optimize,
            learning_rate=learning_rate,
            init_method=start,
            num_init_samples=num_init_samples,
            save_best_every=save_best_every,
            show_progress_bars=show_progress_bars,
            force_update=force_update,
        )
        # sbi returns another point where no step is better than the best start.
        points = torch.cat([best.reshape(1, -1).to(start), start])
        values = self.potential_fn(points, track_gradients=False)
        self._map = points[values.argmax()].unsqueeze(0)
        return self._map


def observations(
    x: Any, condition_shape: torch.Size, may_have_nan: bool = False
) -> Tensor:
    """Return observations with a batch axis, shape `(batch, *condition_shape)`.

    Args:
        x: A tensor or an array, with or without a batch axis.
        condition_shape: The shape of one observation.
        may_have_nan: Whether NaN stands for a missing entry, as in training.

    Raises:
        RuntimeError: If the trailing axes of x do not have this shape.
        ValueError: If x has further axes, is infinite, or has NaN that it may not have.
    """
    x = torch.atleast_2d(torch.as_tensor(x, dtype=torch.float32))
    if x.ndim > len(condition_shape) + 1 and x.shape[-len(condition_shape) :] == (
        condition_shape
    ):
        raise ValueError(
            f"Expected `x` of shape {('batch', *condition_shape)}, got {tuple(x.shape)}."
        )
    x = reshape_to_batch_event(x, condition_shape)
    check_observations(x, may_have_nan)
    return x


def shape_of(sample_shape: Iterable[int]) -> torch.Size:
    """Return the shape of samples.

    Raises:
        TypeError: If `sample_shape` is no shape, but a number, for example.
        ValueError: If it has a negative entry.
    """
    try:
        shape = torch.Size(sample_shape)
    except TypeError as error:
        raise TypeError(
            "Expected `sample_shape` to be a shape, such as (1000,) for 1000 samples, "
            f"got {sample_shape!r}."
        ) from error
    if any(num < 0 for num in shape):
        raise ValueError(
            f"Expected `sample_shape` without negative numbers, got {tuple(shape)}."
        )
    return shape


def parameters_like(theta: Any, like: Tensor) -> Tensor:
    """Return parameters with the type and on the device of a tensor of shape `(D,)`.

    Args:
        theta: Parameters, shape `(..., D)`.
        like: A tensor with one number for each parameter.

    Raises:
        ValueError: If their number is not D.
    """
    theta = torch.as_tensor(theta).to(like)
    if theta.shape[-1:] != like.shape:
        raise ValueError(
            f"Expected `theta` of shape (N, {len(like)}), got {tuple(theta.shape)}."
        )
    return theta


def rows_like(theta: Any, like: Tensor) -> Tensor:
    """Return parameters of shape `(N, D)`; see `parameters_like`.

    Args:
        theta: Parameters, shape `(N, D)` or `(D,)`.
        like: A tensor with one number for each parameter.

    Raises:
        ValueError: If they have another shape.
    """
    theta = torch.atleast_2d(parameters_like(theta, like))
    if theta.ndim != 2:
        raise ValueError(
            f"Expected `theta` of shape (N, {len(like)}), got {tuple(theta.shape)}."
        )
    return theta


def check_batch(theta: Tensor, batch: int) -> None:
    """Raise a ValueError unless parameters have the shape `(*sample_shape, batch, D)`."""
    if theta.ndim < 2 or theta.shape[-2] != batch:
        raise ValueError(
            f"Expected `theta` of shape (*sample_shape, {batch}, D), for as many "
            f"observations, got {tuple(theta.shape)}."
        )


def check_start(init_method: Any) -> None:
    """Raise a ValueError unless it is "posterior" or a tensor of parameters, `(N, D)`."""
    if isinstance(init_method, Tensor) and init_method.ndim == 2:
        check_finite("`init_method`", init_method)
    elif not (isinstance(init_method, str) and init_method == "posterior"):
        is_tensor = isinstance(init_method, Tensor)
        raise ValueError(
            "Expected `init_method` to be 'posterior' or a tensor of parameters (N, D), "
            f"got {tuple(init_method.shape) if is_tensor else repr(init_method)}."
        )


def move(
    posterior: NeuralPosterior,
    trust: TrustCheck,
    device: torch.device | str,
    set_up: Callable[[torch.device | str], None],
) -> None:
    """Move models, prior, simulations and default observation to a device.

    Args:
        posterior: The posterior to move.
        trust: Its models, prior and simulations.
        device: Where to move.
        set_up: Builds the posterior's own parts on a device.
    """
    device, x = process_device(device), posterior.default_x
    trust.to(device)
    set_up(device)
    if x is not None:
        posterior.set_default_x(x.to(device))
