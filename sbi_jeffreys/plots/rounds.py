"""Figures of a run of several rounds."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sbi_jeffreys.plots.style import GREY, color_of, panels
from sbi_jeffreys.rounds.record import Rounds
from sbi_jeffreys.sampling.psis import MAX_PARETO_K


def plot_rounds(rounds: Rounds) -> Figure:
    """Draw KL, effective sample size, k̂ and log Z of each round.

    Args:
        rounds: The result of `run_rounds`.
    """
    table = rounds.table
    with panels(4, 3.0, 2.3, columns=4) as (figure, axes):
        for axis, (column, label) in zip(
            axes,
            {
                "kl": "KL from the proposal before (nats)",
                "relative_ess": "ESS / N",
                "pareto_k": "Pareto k̂",
                "log_z": "log Z (nats)",
            }.items(),
            strict=True,
        ):
            axis.plot(table.simulations, table[column], "o-", color=color_of("energy"))
            axis.set(xlabel="simulations", title=label)
        axes[0].set_yscale("log")
        axes[1].set_ylim(0, 1.05)
        axes[2].axhline(MAX_PARETO_K, color=GREY, linestyle=":")
    return figure


def plot_narrowing(
    rounds: Rounds, parameter_names: Sequence[str] | None = None
) -> Figure:
    """Draw how the posterior's marginals narrow: means and two standard deviations.

    Args:
        rounds: The result of `run_rounds`.
        parameter_names: D names; "theta_0", "theta_1", ... by default.

    Raises:
        ValueError: If there are not D names.
    """
    means, stds = (
        np.array([getattr(each, name) for each in rounds.rounds])
        for name in ("mean", "std")
    )
    names = list(parameter_names or [f"theta_{i}" for i in range(means.shape[1])])
    if len(names) != means.shape[1]:
        raise ValueError(
            f"Expected {means.shape[1]} `parameter_names`, got {len(names)}."
        )
    simulations = rounds.table.simulations
    with panels(len(names), 2.8, 2.0, columns=4) as (figure, axes):
        for axis, name, mean, std in zip(axes, names, means.T, stds.T, strict=True):
            axis.errorbar(
                simulations, mean, 2 * std, fmt="o-", capsize=2, color=color_of("energy")
            )
            axis.set(title=name, xlabel="simulations")
    return figure
