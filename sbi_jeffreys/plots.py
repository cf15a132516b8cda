"""Figures of training, agreement and calibration, and of samples by way of arviz.

All return a matplotlib `Figure` that is not one of pyplot's: `figure.savefig(path)` or,
as the last line of a notebook's cell, the figure itself shows it. None needs a display,
and there is nothing to close.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_jeffreys.calibration_plots import plot_coverage, plot_ranks, plot_tarp
from sbi_jeffreys.figures import GREY, PURPLE, RED, color_of, panels
from sbi_jeffreys.sample_plots import plot_densities, plot_forest, plot_predictive

__all__ = [
    "plot_agreement",
    "plot_coverage",
    "plot_densities",
    "plot_forest",
    "plot_predictive",
    "plot_ranks",
    "plot_tarp",
    "plot_training",
]

MAX_FLOW_TO_ENERGY, MAX_PARETO_K = 0.5, 0.7
TERMS = ("KL(data | flow)", "KL(flow | energy)", "KL(data | energy)")


def plot_training(summary: Mapping[str, Sequence[Any]]) -> Figure:
    """Draw losses, agreement, multipliers and effective sample size over the epochs.

    Dotted lines are where the learning rates fell. Losses of the first epochs may be cut
    off at the top.

    Args:
        summary: `trainer.summary`, after training.

    Raises:
        ValueError: If it lacks something, as before training or that of sbi's NPE.
    """
    needed = (
        "training_loss",
        "validation_loss",
        "validation_energy_loss",
        "validation_flow_to_energy",
        "validation_log_z",
        "validation_ess",
        "multipliers",
        "divergences",
        "learning_rate",
    )
    missing = [name for name in needed if not len(summary.get(name, ()))]
    if missing:
        raise ValueError(
            "Expected `summary` to be that of a JNPE after training, but it has no "
            f"{', '.join(missing)}."
        )
    epochs = np.arange(1, 1 + len(summary["validation_loss"]))
    rates = np.asarray(summary["learning_rate"])
    flow, energy = color_of("flow"), color_of("energy")
    training_energy = np.asarray(summary["divergences"])[:, 2]
    with panels(4, 4.2, 2.6, columns=2) as (figure, axes):
        losses, kl, multipliers, ess = axes
        for values, color, style, label in (
            (summary["validation_loss"], flow, "-", "flow, held out"),
            (summary["training_loss"], flow, ":", "flow, training"),
            (summary["validation_energy_loss"], energy, "-", "energy, held out"),
            (training_energy, energy, ":", "energy, training"),
        ):
            losses.plot(epochs, values, color=color, linestyle=style, label=label)
        losses.set(ylabel="NLL (nats)", title="Negative log-likelihood")
        losses.set_ylim(*_without_onset(losses))
        kl.plot(
            epochs, summary["validation_flow_to_energy"], color=PURPLE, label=TERMS[1]
        )
        kl.plot(epochs, summary["validation_log_z"], color=GREY, label="log Z")
        kl.set(ylabel="nats", title="Agreement, held out")
        kl.set_ylim(*_without_onset(kl))
        for values, color, term in zip(
            np.transpose(summary["multipliers"]),
            (flow, PURPLE, energy),
            TERMS,
            strict=True,
        ):
            multipliers.plot(epochs, values, color=color, label=term)
        multipliers.set(ylabel="multiplier", title="Weights of the divergences")
        multipliers.set_ylim(bottom=0)
        ess.plot(epochs, summary["validation_ess"], color=PURPLE)
        ess.set(
            ylabel="ESS / number of draws",
            title="Effective sample size, held out",
            ylim=(0, 1),
        )
        drops = epochs[1:][np.diff(rates) < 0]
        for axis in axes:
            for epoch in drops:
                line = axis.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":")
            axis.set_xlim(1, max(2, len(epochs)))
        if len(drops):
            line.set_label("learning rates fall")
        for axis in axes if len(drops) else axes[:3]:
            axis.legend()
        for axis in (multipliers, ess):
            axis.set_xlabel("epoch")
    return figure


def plot_agreement(report: Any) -> Figure:
    """Draw how flow and energy agree, with the verdict in the title.

    For one observation: log-weights of draws from the flow, as a histogram, and the tail
    of the weights beside that of Pareto k̂ and of 0.7; a few very low ones may be cut off
    at the left. For several: KL, ESS and k̂ of each, in red where the verdict is not to
    trust.

    Args:
        report: Of `posterior.agreement(x)`.

    Raises:
        ValueError: If the only observation gives no draw any weight.
    """
    verdicts = list(report.verdicts)
    if len(verdicts) == 1:
        return _plot_one_agreement(report, verdicts[0])
    kl, kl_se, ess, pareto_k, good = (
        values.cpu().numpy()
        for values in (
            report.flow_to_energy,
            report.flow_to_energy_se,
            report.ess,
            report.pareto_k,
            report.is_trustworthy,
        )
    )
    where = np.arange(len(verdicts))
    with panels(3, 3.4, 2.6) as (figure, axes):
        for chosen, color, label in (
            (good, color_of("flow"), "to be trusted"),
            (~good, RED, "not to be trusted"),
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
        _threshold(axes[0], MAX_FLOW_TO_ENERGY)
        _threshold(axes[2], MAX_PARETO_K)
        for axis in axes:
            axis.set_xlabel("observation")
        axes[1].legend()
        kinds = Counter(verdict.split(" (")[0] for verdict in verdicts)
        figure.suptitle("; ".join(f"{n} × {kind}" for kind, n in kinds.most_common()))
    return figure


def _plot_one_agreement(report: Any, verdict: str) -> Figure:
    log_weights = report.log_weights[:, 0].double().cpu().numpy()
    num = len(log_weights)
    log_z, pareto_k = float(report.log_z[0]), float(report.pareto_k[0])
    relative = np.sort(log_weights[np.isfinite(log_weights)] - log_z)
    if not len(relative):
        raise ValueError("Expected `report` of draws with some weight, got none.")
    with panels(2, 4.0, 2.9) as (figure, (histogram, tail)):
        color = color_of("flow") if bool(report.is_trustworthy[0]) else RED
        low = relative[len(relative) // 100]
        low = max(relative[0], 2 * low - relative[-1])
        counts, edges = np.histogram(relative, 50, (low, relative[-1]))
        density = counts / np.diff(edges) / len(relative)
        histogram.stairs(density, edges, fill=True, color=color, alpha=0.6)
        histogram.axvline(0, color=GREY, linestyle="--", label="perfect agreement")
        kl, se, ess = (
            float(values[0])
            for values in (report.flow_to_energy, report.flow_to_energy_se, report.ess)
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
            (
                MAX_PARETO_K,
                GREY,
                "--",
                f"with k = {MAX_PARETO_K}, the most to be trusted",
            ),
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
            xlim=(min(0.1, np.exp(low)), max(10, 1.5 * weights[-1])),
            ylim=(0.3 / num, 1.5),
        )
        for axis in (histogram, tail):
            axis.legend()
        figure.suptitle(fill(verdict, 90))
    return figure


def _pareto_tail(weights: np.ndarray, k: float) -> np.ndarray:
    """Return how many of the sorted weights a generalised Pareto tail has above each.

    The fraction of them, with the shape k, and the scale that gives it their median.
    """
    excess = weights - weights[0]
    middle = max(float(np.median(excess)), 1e-12)
    if abs(k) < 1e-6:
        return 0.5 ** (excess / middle)
    return np.maximum(1 + (2**k - 1) * excess / middle, 0) ** (-1 / k)


def _without_onset(axis: Axes) -> tuple[float, float]:
    """Return limits that hold all values but the highest tenth of each line."""
    lines = [np.asarray(line.get_ydata()) for line in axis.lines]
    low = min(np.nanmin(line) for line in lines)
    high = max(np.nanquantile(line, 0.9) for line in lines)
    margin = 0.1 * (high - low) + 1e-3
    return low - margin, high + margin


def _threshold(axis: Axes, value: float) -> None:
    axis.axhline(value, color=GREY, linestyle="--", linewidth=1, label=f"{value}")
