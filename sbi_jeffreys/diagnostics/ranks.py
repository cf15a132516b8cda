"""What the ranks of true parameters among posterior samples say of the posterior."""

from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sbi.diagnostics.sbc import check_uniformity_frequentist
from torch import Tensor

FALSE_ALARM_RATE = 0.01
CONSISTENT = "consistent"
TOO_NARROW, TOO_WIDE, BIASED = "too narrow", "too wide", "biased"
JOINT = "all parameters (TARP)"


class Coverage(NamedTuple):
    """How often central intervals of the posterior hold the parameter.

    Attributes:
        coverage: Fraction of simulations, shape `(D,)`, or `(L, D)` for L levels.
        standard_error: That a calibrated posterior strays by, binomial:
            `sqrt(level * (1 - level) / N)`; shape `()` or `(L, 1)`.
    """

    coverage: np.ndarray
    standard_error: np.ndarray


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Ranks of N parameters among S posterior samples each, and what follows from them.

    Verdicts rest on tests of uniformity of the ranks, each at a level of
    `FALSE_ALARM_RATE` (1 %) over the number of all tests, 3 D + 2 (Bonferroni):

    - for each parameter, `sbi`'s Kolmogorov-Smirnov test, and two-sided z-tests of
      `bias` and `coverage_error`;
    - for all together, `sbi`'s Kolmogorov-Smirnov test of the TARP ranks, and a z-test
      of the area between `ecp` and `alpha`, above level ½.

    A parameter that fails one is *biased* if `bias` is the larger in size, else *too
    narrow* or *too wide* by the sign of `coverage_error`. The sign of the area tells
    narrow from wide, too, but a biased posterior may look like either to it: single
    parameters go first.

    So an exact posterior fails by chance in less than 1 % of calibrations: 0.7 to 0.95 %
    of 20,000 simulated ones with 1 to 10 parameters, N from 20 to 1,000 and S = 1,000.
    The Kolmogorov-Smirnov test takes ranks for continuous; it needs an S far above the
    square root of N. At 10 √N it makes no difference, at 3 √N the rate is 1.3 %.

    Attributes:
        parameter_names: Of the D parameters.
        num_posterior_samples: S, drawn for each simulation.
        ranks: Number of samples below the true parameter, 0 to S, shape `(N, D)`.
        tarp_ranks: Number nearer to the reference point than the true parameters,
            shape `(N,)`.
        ks_p_values: Of the ranks' uniformity, from `sbi`'s `check_sbc`, shape `(D,)`.
        ecp: Expected coverage probability of `sbi`'s `run_tarp`, shape `(bins + 1,)`.
        alpha: Its credibility levels, shape `(bins + 1,)`.
        tarp_atc: Area between the two above level ½, from `sbi`'s `check_tarp`;
            positive if the posterior is too wide, negative if it is too narrow.
        tarp_p_value: From there, too. It compares the two curves as if their points
            were samples, and stays near 1 unless they lie far apart; verdicts rest on
            `tarp_ranks` instead.
    """

    parameter_names: tuple[str, ...]
    num_posterior_samples: int
    ranks: Tensor = field(repr=False)
    tarp_ranks: Tensor = field(repr=False)
    ks_p_values: Tensor = field(repr=False)
    ecp: Tensor = field(repr=False)
    alpha: Tensor = field(repr=False)
    tarp_atc: float
    tarp_p_value: float

    @property
    def pit(self) -> dict[str, np.ndarray]:
        """Ranks mapped into (0, 1), shape `(N,)` for each parameter, by name.

        For instance for `arviz.plot_ecdf(pit["theta_0"], cdf=scipy.stats.uniform.cdf,
        difference=True, confidence_bands=True, eval_points=...)`.
        """
        return dict(zip(self.parameter_names, self._pit.T, strict=True))

    @property
    def bias(self) -> np.ndarray:
        """½ minus the mean of `pit`, shape `(D,)`: positive if samples are too high."""
        return 0.5 - self._pit.mean(0)

    @property
    def coverage_error(self) -> np.ndarray:
        """Coverage minus level, mean over all levels, shape `(D,)`.

        Negative where the posterior is too narrow. With u the `pit`, the smallest central
        interval that holds the parameter is that of level |2u − 1|.
        """
        return 0.5 - np.abs(2 * self._pit - 1).mean(0)

    def coverage(self, level: ArrayLike) -> Coverage:
        """Return how often the central intervals of a level hold the parameters.

        Args:
            level: Of the intervals, in (0, 1): a number, or several of shape `(L,)`.

        Raises:
            ValueError: If a level is outside of (0, 1).
        """
        levels = np.asarray(level, dtype=float)[..., None]
        if not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"Expected `level` between 0 and 1, got {level!r}.")
        inside = np.abs(2 * self._pit - 1) <= levels[..., None]
        error = np.sqrt(levels * (1 - levels) / len(self.ranks))
        return Coverage(inside.mean(-2), error if levels.ndim > 1 else error[0])

    @property
    def verdicts(self) -> dict[str, str]:
        """For each parameter, and for `JOINT`: one of the four constants above."""
        verdicts = {}
        z_scores = zip(
            self.bias / self._error, self.coverage_error / self._error, strict=True
        )
        for name, p_value, (bias, width) in zip(
            self.parameter_names, self.ks_p_values.tolist(), z_scores, strict=True
        ):
            if p_value >= self._level and max(abs(bias), abs(width)) < self._least_z:
                verdicts[name] = CONSISTENT
            elif abs(bias) > abs(width):
                verdicts[name] = BIASED
            else:
                verdicts[name] = TOO_NARROW if width < 0 else TOO_WIDE
        tarp_p_value = check_uniformity_frequentist(
            self.tarp_ranks[:, None], self.num_posterior_samples
        )
        if tarp_p_value >= self._level and abs(self._tarp_z) < self._least_z:
            verdicts[JOINT] = CONSISTENT
        else:
            verdicts[JOINT] = TOO_NARROW if self._tarp_z < 0 else TOO_WIDE
        return verdicts

    @property
    def verdict(self) -> str:
        """One line, which begins with what is most wrong, or with "consistent"."""
        verdicts = self.verdicts
        joint = verdicts.pop(JOINT)
        strength = np.maximum(np.abs(self.bias), np.abs(self.coverage_error))
        worst: dict[str, int] = {}
        for i in np.argsort(-strength):
            worst.setdefault(verdicts[self.parameter_names[i]], int(i))
        worst.pop(CONSISTENT, None)
        if worst:
            counts = {kind: list(verdicts.values()).count(kind) for kind in worst}
            return "; ".join(
                f"{kind}: {counts[kind]} of {len(verdicts)} parameters, most "
                f"{self.parameter_names[i]} ({self._evidence(kind, i)})"
                for kind, i in worst.items()
            )
        if joint != CONSISTENT:
            return f"{joint}: {JOINT} (area {self.tarp_atc:+.3f}), though none alone"
        unseen = self._least_z * self._error
        return (
            f"{CONSISTENT}: {len(self.ranks)} simulations show no error; one of coverage "
            f"above about {unseen:.2f}, mean over levels, would show"
        )

    def _evidence(self, kind: str, i: int) -> str:
        if kind == BIASED:
            side = "high" if self.bias[i] > 0 else "low"
            below = 100 * (0.5 - self.bias[i])
            return f"too {side}, {below:.0f} % of samples are below the true values"
        coverage, error = self.coverage(0.9)
        return f"90 % intervals hold {100 * coverage[i]:.0f} ± {100 * error:.0f} %"

    @property
    def _pit(self) -> np.ndarray:
        return (self.ranks.double().numpy() + 0.5) / (self.num_posterior_samples + 1)

    @property
    def _level(self) -> float:
        return FALSE_ALARM_RATE / (3 * len(self.parameter_names) + 2)

    @property
    def _least_z(self) -> float:
        return NormalDist().inv_cdf(1 - self._level / 2)

    @property
    def _error(self) -> float:
        """Of `bias` and of `coverage_error`, for the variance of a uniform is 1/12."""
        return (12 * len(self.ranks)) ** -0.5

    @property
    def _tarp_z(self) -> float:
        """The area ∫ (ecp − alpha) from ½ to 1, over its standard error.

        One rank, u in (0, 1), adds min(½, 1 − u) − 3/8, of variance 1/6 − 9/64.
        """
        u = (self.tarp_ranks.double().numpy() + 0.5) / (self.num_posterior_samples + 1)
        area = np.minimum(0.5, 1 - u).mean() - 3 / 8
        return float(area / ((1 / 6 - 9 / 64) / len(u)) ** 0.5)
