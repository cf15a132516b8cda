"""Whether a posterior can be trusted at an observation: reports and warnings."""

import warnings
from dataclasses import replace

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
from sbi_jeffreys.posteriors.annealing import annealed
from sbi_jeffreys.sampling.psis import MAX_PARETO_K

FEWEST_SAMPLES = 100
"""Smallest number of draws for a report."""


class TrustCheck:
    """Compares flow and energy, and observations with simulations, for one posterior.

    Each kind of warning is given once. A warning points at the code that called the
    posterior: the posterior's public methods have to call `warn_of_...` themselves.

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
        self._has_warned_of_samples = False
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
        theta, log_weights = self.pair.weighted_draws(
            x, num_samples, self.prior, block_size
        )
        p_value = None if self.novelty is None else self.novelty(x)
        report = report_agreement(log_weights, p_value)
        hard = (report.pareto_k > MAX_PARETO_K).cpu()
        if not bool(hard.any()):
            return report
        corrected = annealed(
            self.pair,
            self.prior,
            x[hard],
            theta[:, hard],
            log_weights[:, hard],
            FEWEST_SAMPLES,
            block_size,
        )
        steps_are_reliable = torch.ones_like(hard)
        steps_are_reliable[hard] = corrected.is_reliable
        return replace(report, steps_are_reliable=steps_are_reliable)

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
        """Warn if the flow misses a part of the energy for some observations.

        Args:
            pareto_k: Shape k̂ of the tail of the weights, `(batch,)`.
        """
        high = pareto_k > MAX_PARETO_K
        self._warn_of_samples(
            high,
            f"Pareto k is above {MAX_PARETO_K} for {int(high.sum())} of {len(high)} "
            f"observations (at most {float(pareto_k.max()):.2f}). There the flow misses "
            "a part of the energy, and its samples are not reliable. The verdicts of "
            "`.agreement(x)` tell where the corrected posterior is.",
        )

    def warn_of_steps(self, is_reliable: Tensor) -> None:
        """Warn if corrected samples are unreliable for some observations.

        Args:
            is_reliable: See `Corrected`, booleans `(batch,)`.
        """
        bad = ~is_reliable
        self._warn_of_samples(
            bad,
            f"The corrected samples are not reliable for {int(bad.sum())} of {len(bad)} "
            "observations: on the way from the flow to the energy, two halves of them "
            "came to differ, or they did not move. `.agreement(x)` tells more.",
        )

    def _warn_of_samples(self, where: Tensor, message: str) -> None:
        if self._has_warned_of_samples or not bool(where.any()):
            return
        self._has_warned_of_samples = True
        warnings.warn(f"{message} This warning is given once.", stacklevel=4)
