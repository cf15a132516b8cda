"""A training turns simulations into one fitted posterior for each of its methods."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import Distribution

NO_VALUE = float("nan")


class Fit(NamedTuple):
    """A posterior, with what is known of its training.

    Attributes:
        posterior: One of sbi's kind.
        nll: Test NLL in nats of the weights kept; NaN where densities are unnormalised,
            or take an ODE to be solved each.
        nll_last: Likewise of the weights after the last epoch; NaN where there are none,
            as of a linear model, or of networks pooled with one.
        epochs: Trained; of all networks together.
        training_seconds: Of the processor, for all networks together.
    """

    posterior: Any
    nll: float
    nll_last: float
    epochs: int
    training_seconds: float


class Training(ABC):
    """Fits its methods to simulations.

    Attributes:
        methods: Names of what it fits.
        batched_options: Of `sample_batched`, to draw for hundreds of x without rejecting
            any sample; None where that takes too long.
        device: That it trains on.
    """

    methods: tuple[str, ...]
    device: str = "cpu"
    batched_options: dict[str, Any] | None = None

    @abstractmethod
    def fit(
        self,
        prior: Distribution,
        theta: Tensor,
        x: Tensor,
        test: tuple[Tensor, Tensor],
        seed: int,
    ) -> list[Fit]:
        """Return a fit for each of the methods.

        Args:
            prior: Over `(D,)`.
            theta: Parameters of simulations, shape `(N, D)`.
            x: Simulations, shape `(N, ...)`.
            test: Fresh pairs, likewise.
            seed: Of networks and batches.
        """

    def on(self, device: str) -> "Training":
        """Return this training there, if it is one of JNPE; its posteriors are not."""
        return self
