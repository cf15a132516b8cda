"""How the energy's posterior samples, in the form of sbi's posterior parameters."""

from dataclasses import dataclass

from sbi.inference.posteriors.posterior_parameters import PosteriorParameters


@dataclass(frozen=True)
class EnergyPosteriorParameters(PosteriorParameters):
    """How `build_posterior(sample_with="energy")` samples.

    Attributes:
        max_sampling_batch_size: Most draws from the flow at a time, over all
            observations together; at least 1.
        enable_transform: Whether `map` ascends in unconstrained space.
    """

    max_sampling_batch_size: int = 10_000
    enable_transform: bool = True

    def validate(self) -> None:
        """Raise a ValueError if a parameter is out of range."""
        if not self.max_sampling_batch_size >= 1:
            raise ValueError(
                "Expected `max_sampling_batch_size` to be at least 1, got "
                f"{self.max_sampling_batch_size}."
            )
