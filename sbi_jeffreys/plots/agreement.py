"""Figures of an agreement report."""

from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sbi_jeffreys.diagnostics.agreement import (
    MAX_KL_FLOW_ENERGY,
    AgreementReport,
    count_verdicts,
)
from sbi_jeffreys.plots.style import GREY, RED, color_of, panels
from sbi_jeffreys.sampling.psis import MAX_PARETO_K

LEAST_SHOWN = 1e-30
"""The lowest weight on the axis, as a multiple of the mean weight."""


def plot_agreement(report: AgreementReport) -> Figure:
    """Draw how well flow and energy agree, with the verdict in the title.

    One observation gives two panels. The first is a histogram of the log weights of draws
    from the flow, which may cut off a few very low weights on the left. The second
    compares the tail of the weights with Pareto tails of shape k̂ and 0.7.

    Several observations give three panels with KL, ESS and k̂ of each observation. Red
    marks the observations where the flow cannot be trusted.

    Args:
        report: The result of `posterior.agreement(x)`.

    Raises:
        ValueError: If there is one observation and all its weights are zero.
    """
    verdicts = list(report.verdicts)
    if len(verdicts) == 1:
        return _plot_one_agreement(report, verdicts[0])
    kl, kl_se, ess, pareto_k, good = (
        values.cpu().numpy()
        for values in (
            report.kl_flow_energy,
            report.kl_flow_energy_se,
            report.ess,
            report.pareto_k,
            report.flow_is_trustworthy,
        )
    )
    where = np.arange(len(verdicts))
    with panels(3, 3.4, 2.6) as (figure, axes):
        for chosen, color, label in (
            (good, color_of("flow"), "flow is reliable"),
            (~good, RED, "flow is not reliable"),
        ):
            if not chosen.any():
                continue
            style: dict[str, Any] = {
                "color": color,
                "marker": "o",
                "markersize": 4,
                "linestyle": "none",
            }
            axes[0].errorbar(where[chosen], kl[chosen], kl_se[chosen], **style)
            axes[1].plot(where[chosen], ess[chosen], **style, label=label)
            axes[2].plot(where[chosen], pareto_k[chosen], **style)
        axes[0].set(ylabel="KL(flow | energy) (nats)", title="Reverse KL, ± SE")
        axes[1].set(ylabel="ESS / number of draws", title="Effective sample size")
        axes[1].set_ylim(0, 1)
        axes[2].set(ylabel="Pareto k̂", title="Tail of the weights")
        _threshold(axes[0], MAX_KL_FLOW_ENERGY)
        _threshold(axes[2], MAX_PARETO_K)
        for axis in axes:
            axis.set_xlabel("observation")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].legend()
        counts = count_verdicts(verdicts)
        figure.suptitle("; ".join(f"{num} × {kind}" for kind, num in counts.items()))
    return figure


def _plot_one_agreement(report: AgreementReport, verdict: str) -> Figure:
    log_weights = report.log_weights[:, 0].double().cpu().numpy()
    num = len(log_weights)
    log_z, pareto_k = float(report.log_z[0]), float(report.pareto_k[0])
    relative = np.sort(log_weights[np.isfinite(log_weights)] - log_z)
    if not len(relative):
        raise ValueError("Expected `report` with a draw of positive weight, got none.")
    with panels(2, 4.0, 2.9) as (figure, (histogram, tail)):
        color = color_of("flow") if bool(report.flow_is_trustworthy[0]) else RED
        low = relative[len(relative) // 100]
        low = max(relative[0], 2 * low - relative[-1])
        counts, edges = np.histogram(relative, 50, (low, relative[-1]))
        density = counts / np.diff(edges) / len(relative)
        histogram.stairs(density, edges, fill=True, color=color, alpha=0.6)
        histogram.axvline(0, color=GREY, linestyle="--", label="perfect agreement")
        kl, se, ess = (
            float(values[0])
            for values in (report.kl_flow_energy, report.kl_flow_energy_se, report.ess)
        )
        histogram.set(
            xlabel="log weight − log Z (nats)",
            ylabel="density of draws",
            title=f"KL(flow | energy) {kl:.2f} ± {se:.2f} nats, ESS {100 * ess:.0f} %",
        )
        above = (len(relative) - np.arange(len(relative)) - 0.5) / num
        tail.plot(np.exp(relative), above, ".", color=color, markersize=3, label="draws")
        weights = np.exp(relative[-int(min(num / 5, 3 * num**0.5)) :])
        for k, line, style, label in (
            (pareto_k, "black", "-", "Pareto tail with k̂"),
            (MAX_PARETO_K, GREY, "--", f"Pareto tail with k = {MAX_PARETO_K}, the limit"),
        ):
            if np.isfinite(pareto_k):
                share = len(weights) / num * _pareto_tail(weights, k)
                tail.plot(weights, share, style, color=line, label=label)
        tail.set(
            xscale="log",
            yscale="log",
            xlabel="weight / mean weight",
            ylabel="fraction of draws above",
            title=f"Tail of the weights, Pareto k̂ {pareto_k:.2f}",
            xlim=(np.clip(np.exp(low), LEAST_SHOWN, 0.1), max(10, 1.5 * weights[-1])),
            ylim=(0.3 / num, 1.5),
        )
        for axis in (histogram, tail):
            axis.legend()
        figure.suptitle(fill(verdict, 90))
    return figure


def _pareto_tail(weights: np.ndarray, k: float) -> np.ndarray:
    """Return the fraction of a generalised Pareto tail above each of the sorted weights.

    The tail has the shape k and the scale at which its median is that of the weights.
    """
    excess = weights - weights[0]
    middle = max(float(np.median(excess)), 1e-12)
    if abs(k) < 1e-6:
        return 0.5 ** (excess / middle)
    return np.maximum(1 + (2**k - 1) * excess / middle, 0) ** (-1 / k)


def _threshold(axis: Axes, value: float) -> None:
    axis.axhline(value, color=GREY, linestyle="--", linewidth=1, label=f"{value}")
