r"""Whether flow and energy agree at an observation, and what that says about trust.

Flow and energy were both fitted to the posterior, by different divergences and as
different functions. Where the simulations determine the posterior, the two agree. Where
they do not, as with few simulations or after a poor training, nothing makes them agree.

Agreement is no proof. When training ended too soon, both may still be close to the prior
and agree. The held-out loss and `calibrate` show this. Far outside the simulations, x is
clipped to their edge for both models (`preprocessing.training_range`). The p-value of x
shows this.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan

import pandas as pd
import torch
from torch import Tensor

from sbi_jeffreys.sampling.importance_weights import (
    kl_flow_energy,
    kl_flow_energy_se,
    smoothed_weights,
)
from sbi_jeffreys.sampling.psis import MAX_PARETO_K
from sbi_jeffreys.tables import as_html, as_text

MIN_P_VALUE = 0.01
"""Below this p-value x is called unlike the simulations."""

MAX_KL_FLOW_ENERGY = 0.5
"""Above this KL(p ‖ q), in nats, flow and energy are said to differ."""


@dataclass(frozen=True)
class AgreementReport:
    r"""How flow and energy agree at each observation. Printed, it has a line for each.

    The verdict is the first of these that holds, where SE is the standard error:

    - **x is unlike the simulations:** its conformal p-value is below 0.01. This takes at
      least 120 simulations. At most one in a hundred observations that are drawn like
      the simulations is called unlike them.
    - **flow and energy do not agree:** Pareto k̂ > 0.7. The flow misses a part of the
      energy model: do not trust the flow. Samples of the corrected posterior then go in
      steps from the flow to the energy. They are the energy's where two halves of them
      agree and they moved (`sampling.halves`). Whether the energy is right, `calibrate`
      tells. Where the halves differ, trust neither posterior.
    - **flow and energy differ:** KL(p ‖ q) > 0.5 nats + 2 SE. Prefer the corrected
      posterior.
    - **flow and energy agree.**

    How often Gaussian flows in four dimensions are called not to agree, from 2,000 draws:

    ==================================  =======
    variance, relative to the energy's  share
    ==================================  =======
    0.1                                 98 %
    0.6                                 1.5 %
    1 or more                           0 %
    ==================================  =======

    Attributes:
        kl_flow_energy: KL(p ‖ q) in nats, shape `(batch,)`.
        kl_flow_energy_se: Standard error of `kl_flow_energy`, shape `(batch,)`.
        ess: Effective sample size over the number of draws, between 0 and 1, `(batch,)`.
        pareto_k: Shape k̂ of the importance weights' tail, `(batch,)`.
        log_z: log Z in nats, `(batch,)`; 0 where the energy is normalised.
        log_z_se: Standard error of `log_z`, `(batch,)`.
        x_p_value: How unusual x is among the simulations (see `Novelty`), `(batch,)`.
            None if the simulations are unknown.
        log_weights: :math:`f - \log p` at draws from the flow, `(num_samples, batch)`.
        steps_are_reliable: Whether samples of the energy that go in steps from the flow
            are reliable; True where no steps are needed. Booleans, `(batch,)`.
    """

    kl_flow_energy: Tensor
    kl_flow_energy_se: Tensor
    ess: Tensor
    pareto_k: Tensor
    log_z: Tensor
    log_z_se: Tensor
    x_p_value: Tensor | None
    log_weights: Tensor
    steps_are_reliable: Tensor

    @property
    def verdicts(self) -> list[str]:
        """One line for each observation."""
        return [self._verdict(i) for i in range(len(self.ess))]

    @property
    def flow_is_trustworthy(self) -> Tensor:
        """Where k̂ is at most 0.7 and x is like the simulations, as booleans."""
        return (self.pareto_k <= MAX_PARETO_K).cpu() & self._x_is_usual

    @property
    def corrected_is_reliable(self) -> Tensor:
        """Where samples are the energy's and x is like the simulations, as booleans."""
        return self.steps_are_reliable & self._x_is_usual

    @property
    def _x_is_usual(self) -> Tensor:
        if self.x_p_value is None:
            return torch.ones_like(self.steps_are_reliable)
        return (self.x_p_value >= MIN_P_VALUE).cpu()

    def _verdict(self, i: int) -> str:
        p = None if self.x_p_value is None else float(self.x_p_value[i])
        k, kl, se = (
            float(values[i])
            for values in (self.pareto_k, self.kl_flow_energy, self.kl_flow_energy_se)
        )
        if p is not None and p < MIN_P_VALUE:
            return f"x is unlike the simulations (p = {p:.3f}): trust neither posterior"
        if not k <= MAX_PARETO_K:
            advice = "calibrate the corrected posterior, and do not trust the flow"
            if not self.steps_are_reliable[i]:
                advice = "trust neither posterior"
            return (
                f"flow and energy do not agree (Pareto k {k:.2f} > {MAX_PARETO_K}): "
                f"{advice}"
            )
        if kl > MAX_KL_FLOW_ENERGY + 2 * se:
            return (
                f"flow and energy differ (KL {kl:.2f} nats, ESS {float(self.ess[i]):.0%})"
                ": prefer the corrected posterior"
            )
        return f"flow and energy agree (KL {kl:.2f} nats, ESS {float(self.ess[i]):.0%})"

    def __str__(self) -> str:
        return as_text(self._table)

    def _repr_html_(self) -> str:
        return as_html(self._table)

    @property
    def _table(self) -> pd.DataFrame:
        """A row for each observation, with cells as they are shown."""
        num = len(self.ess)
        kl, kl_se, ess, pareto_k, log_z, log_z_se = (
            values.tolist()
            for values in (
                self.kl_flow_energy,
                self.kl_flow_energy_se,
                self.ess,
                self.pareto_k,
                self.log_z,
                self.log_z_se,
            )
        )
        p = [torch.nan] * num if self.x_p_value is None else self.x_p_value.tolist()
        return pd.DataFrame(
            {
                "KL(p|q) ± se": [f"{kl[i]:.3f} ± {kl_se[i]:.3f}" for i in range(num)],
                "ESS/N": [f"{each:.2f}" for each in ess],
                "Pareto k": [f"{each:.2f}" for each in pareto_k],
                "log Z ± se": [f"{log_z[i]:.3f} ± {log_z_se[i]:.3f}" for i in range(num)],
                "p(x)": ["-" if isnan(each) else f"{each:.3f}" for each in p],
                "verdict": self.verdicts,
            }
        )


def count_verdicts(verdicts: Iterable[str]) -> dict[str, int]:
    """Count verdicts of an agreement report without their numbers, most common first."""
    return dict(Counter(each.split(" (")[0] for each in verdicts).most_common())


def report_agreement(log_weights: Tensor, x_p_value: Tensor | None) -> AgreementReport:
    r"""Judge by importance weights how flow and energy agree, without any steps.

    Draws outside the prior have no weight, because a posterior rejects them. So p in
    KL(p ‖ q) is the flow restricted to the prior.

    Args:
        log_weights: :math:`f - \log p` in nats at draws from the flow, shape
            `(num, batch)`; minus infinity outside the prior.
        x_p_value: p-values of the observations, shape `(batch,)`, or None.

    Raises:
        RuntimeError: If all draws for some observation are outside the prior.
    """
    weights = smoothed_weights(log_weights.unsqueeze(-1), log_weights)
    return AgreementReport(
        kl_flow_energy=kl_flow_energy(log_weights, weights.log_z),
        kl_flow_energy_se=kl_flow_energy_se(log_weights, weights.log_weights.exp()),
        ess=weights.ess / len(log_weights),
        pareto_k=weights.pareto_k,
        log_z=weights.log_z,
        log_z_se=weights.log_z_se,
        x_p_value=x_p_value,
        log_weights=log_weights,
        steps_are_reliable=torch.ones(len(weights.ess), dtype=torch.bool),
    )
