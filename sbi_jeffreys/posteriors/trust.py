"""Whether a posterior can be trusted at an observation: reports and warnings."""

import warnings

import torch
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.diagnostics.agreement import (
    MIN_P_VALUE,
    AgreementReport,
    report_agreement,
)
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.sampling.psis import MAX_PARETO_K

FEWEST_SAMPLES = 100
"""Smallest number of draws for a report."""


class TrustCheck:
    """Compares flow and energy, and observations with simulations, for one posterior.

    Each kind of warning is given once. A warning points at the code that called the
    posterior: the posterior's public methods have to call `warn_of_unusual` and
    `warn_of_tail` themselves.

    Attributes:
        pair: Flow and energy; None if there is no energy.
        prior: Draws outside its support have no weight.
        novelty: Compares observations with the simulations; None if these are unknown.
    """

    def __init__(
        self, pair: ModelPair | None, prior: Distribution, novelty: Novelty | None
    ) -> None:
        """
        Args:
            pair: See the attributes.
            prior: See the attributes.
            novelty: See the attributes.
        """
        self.pair = pair
        self.prior = prior
        self.novelty = novelty
        self._has_warned_of_tail = False
        self._has_warned_of_unusual = False

    def to(self, device: torch.device | str) -> None:
        """Move models, prior and simulations to a device."""
        for module in (self.pair, self.novelty):
            if module is not None:
                module.to(device)
        self.prior = move_distribution_to_device(self.prior, device)

    def report(self, x: Tensor, num_samples: int, block_size: int) -> AgreementReport:
        """Return how flow and energy agree at each observation.

        Args:
            x: Observations, shape `(batch, *condition_shape)`.
            num_samples: Draws from the flow for each observation, at least 100.
            block_size: Most draws at a time, over all observations together.

        Raises:
            ValueError: If `num_samples` is less than 100.
            RuntimeError: If there is no energy, or no draw is inside the prior.
        """
        if self.pair is None:
            raise RuntimeError(
                "There is no energy to compare with: the posterior was built from a flow "
                "alone."
            )
        if num_samples < FEWEST_SAMPLES:
            raise ValueError(
                f"Expected `num_samples` to be at least {FEWEST_SAMPLES}, got "
                f"{num_samples}."
            )
        _, log_weights = self.pair.weighted_draws(x, num_samples, self.prior, block_size)
        p_value = None if self.novelty is None else self.novelty(x)
        return report_agreement(log_weights, p_value)

    def warn_of_unusual(self, x: Tensor) -> None:
        """Warn if one of several observations is unlike the simulations.

        At most one in a hundred calls gives a false alarm, however many observations
        there are (Bonferroni correction). With more than ten observations the p-value
        cannot become small enough for a warning.

        Args:
            x: Observations of the same parameters, shape `(n, *condition_shape)`.
        """
        if self._has_warned_of_unusual or self.novelty is None:
            return
        p_value = float(self.novelty(x.to(self.novelty.loc.device)).min())
        if p_value * len(x) < MIN_P_VALUE:
            self._has_warned_of_unusual = True
            warnings.warn(
                f"x is unlike the simulations (p = {p_value:.3f}): trust neither "
                "posterior. This warning is given once.",
                stacklevel=3,
            )

    def warn_of_tail(self, pareto_k: Tensor) -> None:
        """Warn if importance weights are unreliable for some observations.

        Args:
            pareto_k: Shape k̂ of the weights' tail, `(batch,)`.
        """
        high = pareto_k > MAX_PARETO_K
        if self._has_warned_of_tail or not bool(high.any()):
            return
        self._has_warned_of_tail = True
        warnings.warn(
            f"Pareto k is above {MAX_PARETO_K} for {int(high.sum())} of {len(high)} "
            f"observations (at most {float(pareto_k.max()):.2f}). There flow and energy "
            "do not agree, and neither the flow nor the corrected samples are reliable. "
            "`.agreement(x)` tells more. This warning is given once.",
            stacklevel=3,
        )
