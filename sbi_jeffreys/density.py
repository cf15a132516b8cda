"""Densities of samples without x: the same two models, trained in the same way."""

import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.data.arrays import check_finite
from sbi_jeffreys.models.building import FlowChoice
from sbi_jeffreys.models.flow import Shape
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.objective.agreement import Agreement, agreement
from sbi_jeffreys.trainer import JNPE

BLOCK_SIZE = 10_000
"""Most points evaluated at a time."""


class PairDensity:
    r"""A flow $p_\phi$, and an energy-based model $q_\psi \propto e^{f_\psi}$."""

    def __init__(self, pair: ModelPair) -> None:
        """
        Args:
            pair: Both models. Their condition is a constant x of shape `(1,)`.
        """
        self._pair = pair

    @property
    def pair(self) -> ModelPair:
        """Both models. Their condition is a constant x of shape `(1,)`."""
        return self._pair

    def log_prob(self, points: Tensor) -> Tensor:
        """Return the flow's log densities in nats, shape `(...)`, without gradients.

        They are minus infinity outside of the base's bounds.

        Args:
            points: Shape `(..., D)`, of any type and device.

        Raises:
            ValueError: If D is not that of the samples.
        """
        return self._evaluate(self.pair.flow.log_prob, points)

    def proxy_log_prob(self, points: Tensor) -> Tensor:
        """Return f in nats, shape `(...)`, without gradients.

        f is an unnormalised log density, which exceeds the normalised one by
        `agreement().log_z`. It is minus infinity outside of the base's bounds.

        Args:
            points: Shape `(..., D)`, of any type and device.

        Raises:
            ValueError: If D is not that of the samples.
        """
        return self._evaluate(self.pair.energy, points)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = (1,)) -> Tensor:
        """Return samples of the flow, shape `(*sample_shape, D)`.

        Args:
            sample_shape: Shape of the draws.
        """
        return self.pair.flow.sample(sample_shape, self._nothing)[..., 0, :]

    @torch.no_grad()
    def agreement(self, num_samples: int = BLOCK_SIZE) -> Agreement:
        """Compare both models at draws from the flow; see `objective.agreement`.

        Args:
            num_samples: Number of draws.

        Returns:
            Tensors of shape `()`.
        """
        flow, energy = self.pair.given(self._nothing)
        draws, log_p = flow.rsample_and_log_prob(num_samples)
        return Agreement(*(value[0] for value in agreement(log_p, energy(draws))))

    @property
    def _nothing(self) -> Tensor:
        return self.pair.energy.loc.new_zeros(1, 1)

    @torch.no_grad()
    def _evaluate(
        self, function: Callable[[Tensor, Tensor], Tensor], points: Tensor
    ) -> Tensor:
        loc = self.pair.energy.loc
        points = torch.as_tensor(points, dtype=loc.dtype, device=loc.device)
        if points.shape[-1:] != loc.shape:
            raise ValueError(
                f"Expected `points` of shape (..., {len(loc)}), got "
                f"{tuple(points.shape)}."
            )
        rows = points.reshape(-1, 1, len(loc))
        values = rows.new_empty(len(rows), 1)
        for start in range(0, len(rows), BLOCK_SIZE):
            some = slice(start, start + BLOCK_SIZE)
            values[some] = function(rows[some], self._nothing)
        return values.reshape(points.shape[:-1])


class JeffreysDensityEstimator(PairDensity):
    r"""Fits a flow and an energy-based model to samples, each a check on the other.

    They are trained by the constrained Jeffreys objective of arXiv:2511.11159. This is
    `JNPE` without x and without its pool. The flow is normalised and can be sampled. The
    energy-based model is nearly normalised, and often the better fit.

    Example:
        estimator = JeffreysDensityEstimator().fit(samples)
        estimator.log_prob(points)
        estimator.sample((1000,))
    """

    def __init__(
        self,
        base: Distribution | None = None,
        density_estimator: FlowChoice = "nsf",
        device: str = "cpu",
        **options: Any,
    ) -> None:
        r"""
        Args:
            base: The density that f starts from. No sample leaves its bounds. By default
                a Gaussian fitted to the samples.
            density_estimator: The flow, as in `JNPE`.
            device: Where to train, e.g. "cpu" or "cuda".
            options: Other arguments of `JNPE`, such as the options of the method
                (`JeffreysOptions`).

        Raises:
            TypeError: If there is no option of this name.
            ValueError: If an option is out of range.
        """
        self._arguments = (base, density_estimator, device)
        self._options = options
        self._trainer = self._new_trainer()

    def fit(self, samples: Tensor, **training: Any) -> Self:
        """Train on samples; anew, unless `resume_training=True`.

        Earlier models are kept until training has ended without an error.

        Args:
            samples: Shape `(N, D)`. Resuming uses the samples of the first call.
            training: Arguments of `JNPE.train`, for example `max_num_epochs`.

        Raises:
            ValueError: If samples have another shape, are not all finite, or are outside
                of the base's support.
            Exception: Whatever `JNPE.train` raises.
        """
        samples = torch.as_tensor(samples, dtype=torch.float32)
        if samples.ndim != 2:
            raise ValueError(
                f"Expected `samples` of shape (N, D), got {tuple(samples.shape)}."
            )
        check_finite("`samples`", samples)
        trainer = self._trainer
        if not training.get("resume_training", False):
            trainer = self._new_trainer()
            nothing = samples.new_zeros(len(samples), 1)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Data has constant values")
                trainer.append_simulations(samples, nothing, trainer.prior)
        trainer.train(**training)
        self._trainer = trainer
        return self

    @property
    def pair(self) -> ModelPair:
        """Both models with the best weights. Their condition is an x of shape `(1,)`.

        Raises:
            RuntimeError: Before `fit`.
        """
        energy = self._trainer.energy
        return ModelPair(self._trainer.flow, energy)

    @property
    def latest(self) -> PairDensity:
        """Both models, averaged up to the last epoch, whether it was the best or not.

        Raises:
            RuntimeError: Before `fit`.
        """
        return PairDensity(self._trainer.latest)

    @property
    def summary(self) -> dict[str, list[Any]]:
        """The record of the training, as in `JNPE.summary`."""
        return self._trainer.summary

    def _new_trainer(self) -> JNPE:
        return JNPE(*self._arguments, pool=False, **self._options)
