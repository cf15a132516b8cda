"""Multipliers against 25 fixed weightings, as in Figure 2 of arXiv:2511.11159.

All are trained on a Gaussian mixture in the plane, equally long and at the same
learning rates. Training goes past the point where overfitting starts, and the last epoch
is judged.
"""

from itertools import product
from math import inf
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks.paper.fits import METHODS, estimator_of, fit_for
from benchmarks.paper.planar import draw_mixture, mixture
from benchmarks.report import spread, table
from benchmarks.rows import curve, numbers
from sbi_jeffreys.plots.style import GREY, color_of, panels

NUM_TEST, TEST_SEED = 10_000, 10_000
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights of KL(data || flow) and of KL(data || energy). KL(flow || energy) has 1."""

Z_RANGE = (0.8, 1.25)


RESILIENT: dict[str, dict[str, Any]] = {
    "resilient": METHODS["ours"],
    "resilient, slack 0.1": {"slack": (0.1, 1.0, 0.1)},
}
"""The default, whose slack of one nat suits models of some ten parameters, and a tenth
of this slack for the fits to the data, for two parameters."""

SETTINGS: dict[str, dict[str, Any]] = RESILIENT | {
    f"{flow:g} / 1 / {energy:g}": {"weighting": "fixed", "weights": (flow, 1.0, energy)}
    for flow, energy in product(LEVELS, LEVELS)
}
"""Options of the estimator by name: fixed weights of D1, D2 and D3, or resilient."""


class Row(NamedTuple):
    """Results of one training. They are infinite if it diverged in its first epoch.

    Attributes:
        setting: One of `SETTINGS`.
        seed: Seed of points and networks.
        num_samples: Points for training and validation together.
        epochs: Epochs trained.
        kl_best: KL(mixture || flow) at the best held-out epoch, in nats, estimated on
            test points.
        kl_last: KL(mixture || flow) at the last epoch.
        energy_kl_last: KL(mixture || energy) at the last epoch.
        z_last: The energy's normaliser at the last epoch.
        nll_curve: Held-out NLL after each epoch.
        z_curve: Z, from held-out log Z, after each epoch.
    """

    setting: str
    seed: int
    num_samples: int
    epochs: int
    kl_best: float
    kl_last: float
    energy_kl_last: float
    z_last: float
    nll_curve: str
    z_curve: str


def keys(
    seeds: list[int], num_samples: int, epochs: int
) -> list[tuple[str, int, int, int]]:
    """Return the keys of all settings, seed by seed."""
    return [(name, seed, num_samples, epochs) for seed in seeds for name in SETTINGS]


def train(setting: str, seed: int, num_samples: int, epochs: int) -> Row:
    """Train with one setting, and measure.

    Args:
        setting: One of `SETTINGS`.
        seed: Of points and networks.
        num_samples: For training and validation together.
        epochs: To train.
    """
    points = draw_mixture(num_samples, seed)
    test = draw_mixture(NUM_TEST, TEST_SEED)
    exact = mixture().log_prob(test).mean()
    torch.manual_seed(seed)
    try:
        estimator = fit_for(epochs, points, estimator_of(SETTINGS[setting]))
    except FloatingPointError:
        failed = (inf, inf, inf, inf, curve([inf]), curve([inf]))
        return Row(setting, seed, num_samples, epochs, *failed)
    latest = estimator.latest
    log_z = latest.agreement().log_z
    return Row(
        setting,
        seed,
        num_samples,
        epochs,
        float(exact - estimator.log_prob(test).mean()),
        float(exact - latest.log_prob(test).mean()),
        float(exact + log_z - latest.proxy_log_prob(test).mean()),
        float(log_z.exp()),
        curve(estimator.summary["validation_loss"]),
        curve(torch.tensor(estimator.summary["validation_log_z"]).exp().tolist()),
    )


def report(rows: pd.DataFrame) -> str:
    """Return the table of all settings, in Markdown, least last-epoch KL first."""
    by_setting = rows.groupby("setting")
    means = by_setting[["kl_best", "kl_last", "energy_kl_last", "z_last"]].mean()
    extremes = by_setting.z_last.agg(["min", "max"])
    lines = []
    for name in means.kl_last.sort_values().index:
        mean, (low, high) = means.loc[name], extremes.loc[name]
        lines.append(
            (
                name,
                f"{mean.kl_best:.3f}",
                spread(rows.kl_last[rows.setting == name], 3),
                f"{mean.energy_kl_last:.3f}",
                f"{low:.3f} to {high:.3f}",
                "yes" if Z_RANGE[0] <= low and high <= Z_RANGE[1] else "no",
            )
        )
    fixed = means.drop(list(RESILIENT), errors="ignore")
    judged = ["kl_last", "energy_kl_last", "kl_best"]
    worse = [
        (name, *(fixed[judged] > means.loc[name, judged]).sum())
        for name in RESILIENT
        if name in means.index
    ]
    (num,), (epochs,) = set(rows.num_samples), set(rows.epochs)
    return "\n\n".join(
        [
            f"Each training has {num:,} points of a mixture of five Gaussians in the "
            f"plane and {epochs} epochs. A value is the KL from the mixture to the "
            f"model, in nats: the model's test NLL on {NUM_TEST:,} points less that of "
            "the mixture, mean ± standard deviation over seeds. The flow is that of the "
            "best held-out epoch and of the last epoch, the energy-based model that of "
            "the last epoch. Z is its normaliser, lowest to highest over seeds. The last "
            f"column says whether Z is within {Z_RANGE}.",
            f"The next table counts how many of {len(fixed)} fixed weightings are worse "
            "than the multipliers. "
            "Multipliers that have settled are constant weights, so the fixed weights "
            "nearest to them should do as well.",
            table(
                (
                    "worse than",
                    "by the flow, last epoch",
                    "by the energy, last epoch",
                    "by the flow, best epoch",
                ),
                worse,
            ),
            table(
                (
                    "weights of D1 / D2 / D3",
                    "flow, best epoch",
                    "flow, last epoch",
                    "energy, last epoch",
                    "Z",
                    "Z in range",
                ),
                lines,
            ),
        ]
    )


def figure(rows: pd.DataFrame) -> Figure:
    """Return held-out NLL and Z over the epochs, of the first seed there is."""
    rows = rows[rows.seed == rows.seed.min()].sort_values(
        "setting", key=lambda names: names.isin(list(RESILIENT))
    )
    colors = dict(zip(RESILIENT, (color_of("flow"), color_of("energy")), strict=True))
    labels = ("held-out NLL, nats", "Z (held out)")
    with panels(2, 4.2, 3.0, columns=2) as (result, axes):
        for axis, words, label in zip(
            axes, (rows.nll_curve, rows.z_curve), labels, strict=True
        ):
            for name, values in zip(rows.setting, map(numbers, words), strict=True):
                axis.plot(
                    range(1, 1 + len(values)),
                    values,
                    color=colors.get(name, GREY),
                    alpha=1.0 if name in RESILIENT else 0.3,
                    linewidth=1.8 if name in RESILIENT else 0.7,
                    label=name if name in RESILIENT else None,
                )
            axis.set(xlabel="epoch", ylabel=label)
        low = min(min(numbers(words)) for words in rows.nll_curve)
        axes[0].set_ylim(low - 0.1, low + 1.0)
        axes[1].set(yscale="log", ylim=(0.1, 10))
        axes[1].axhspan(*Z_RANGE, color=color_of("flow"), alpha=0.1)
        axes[0].legend()
    return result
