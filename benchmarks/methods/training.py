"""A training turns simulations into one fitted posterior for each of its methods."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import Distribution

NO_VALUE = float("nan")


class Fit(NamedTuple):
    """A posterior, and figures of its training.

    Attributes:
        posterior: A posterior with the interface of sbi's.
        nll: Test NLL in nats, within the prior. NaN where densities are unnormalised, or
            where each density takes an ODE to be solved.
        epochs: Epochs trained, of all networks together.
        training_seconds: CPU seconds of training, of all networks together.
    """

    posterior: Any
    nll: float
    epochs: int
    training_seconds: float


class Training(ABC):
    """Fits its methods to simulations.

    Attributes:
        methods: Names of the methods that it fits.
        batched_options: Options of `sample_batched` for drawing for hundreds of x without
            rejecting samples. None where that takes too long.
        device: Device that it trains on.
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
            prior: Prior over `(D,)`.
            theta: Parameters of simulations, shape `(N, D)`.
            x: Simulations, shape `(N, ...)`.
            test: Fresh pairs, of shapes `(M, D)` and `(M, ...)`.
            seed: Seed of networks and batches.
        """

    def on(self, device: str) -> "Training":
        """Return this training on the device, if it can use one.

        Its posteriors are on the CPU.
        """
        return self


class Unrejected:
    """A posterior that is sampled without rejecting samples outside of the prior.

    Where a flow leaks much, sbi's rejection may not end.
    """

    def __init__(self, posterior: Any, options: dict[str, Any]) -> None:
        """
        Args:
            posterior: A posterior of a training.
            options: `Training.batched_options`.
        """
        self.posterior, self.options = posterior, options

    def sample_batched(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return samples, as the posterior's method of this name does."""
        return self.posterior.sample_batched(*args, **kwargs, **self.options)
