"""Figure of the history of a training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_jeffreys.plots.style import GREY, PURPLE, color_of, panels

LABELS = ("KL(data | flow)", "KL(flow | energy)", "KL(data | energy)")


def plot_training(summary: Any) -> Figure:
    """Draw losses, agreement, multipliers and effective sample size over the epochs.

    Dotted vertical lines mark the starts of cycles of the learning rates. High losses of
    the first epochs may be cut off at the top.

    Args:
        summary: A `JNPE` after training, or its `summary`.

    Raises:
        TypeError: If it is neither.
        ValueError: If an entry is missing, for example before training.
    """
    summary = getattr(summary, "summary", summary)
    if not isinstance(summary, Mapping):
        raise TypeError(
            "Expected `summary` to be a JNPE or its `summary`, got "
            f"{type(summary).__name__}."
        )
    needed = (
        "training_loss",
        "validation_loss",
        "validation_energy_loss",
        "validation_kl_flow_energy",
        "validation_log_z",
        "validation_ess",
        "multipliers",
        "divergences",
        "learning_rate",
    )
    missing = [name for name in needed if not len(summary.get(name, ()))]
    if missing:
        raise ValueError(
            "Expected `summary` of a JNPE after training, but it has no "
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
            epochs, summary["validation_kl_flow_energy"], color=PURPLE, label=LABELS[1]
        )
        kl.plot(epochs, summary["validation_log_z"], color=GREY, label="log Z")
        kl.set(ylabel="nats", title="Agreement, held out")
        kl.set_ylim(*_without_onset(kl))
        for values, color, term in zip(
            np.transpose(summary["multipliers"]),
            (flow, PURPLE, energy),
            LABELS,
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
        fell, rises = np.diff(rates[:-1]) < 0, np.diff(rates[1:]) > 0
        starts = epochs[2:][fell & rises]
        for axis in axes:
            for epoch in starts:
                line = axis.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":")
            axis.set_xlim(1, max(2, len(epochs)))
        if len(starts):
            line.set_label("a new cycle")
        for axis in axes if len(starts) else axes[:3]:
            axis.legend()
        for axis in (multipliers, ess):
            axis.set_xlabel("epoch")
    return figure


def _without_onset(axis: Axes) -> tuple[float, float]:
    """Return limits for all values but the highest tenth of each line."""
    lines = [np.asarray(line.get_ydata()) for line in axis.lines]
    low = min(np.nanmin(line) for line in lines)
    high = max(np.nanquantile(line, 0.9) for line in lines)
    margin = 0.1 * (high - low) + 1e-3
    return low - margin, high + margin
