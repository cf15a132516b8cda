"""Densities in the plane from few points: Figure 4 of arXiv:2511.11159."""

from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.paper.fits import METHODS, estimator_of, fit_for
from benchmarks.paper.planar import PLANAR, draw
from benchmarks.report import spread, table
from sbi_jeffreys.density import PairDensity
from sbi_jeffreys.plots.style import panels

NUM_TEST, TEST_SEED = 10_000, 10_000
NUM_DRAWS = 20_000
"""Draws of the flow for the normaliser of the energy-based model."""

LIMIT, NUM_PIXELS = 3.0, 100
"""Maps show [-3, 3]² in 100 by 100 pixels."""


class Row(NamedTuple):
    """Test NLLs in nats. Those of the energy-based model are NaN for the flow alone.

    Attributes:
        name: One of `PLANAR`.
        method: One of `METHODS`.
        seed: Seed of points and networks.
        num_samples: Points for training and validation together.
        epochs: Epochs trained.
        best: Test NLL of the flow, best held-out epoch.
        last: Test NLL of the flow, last epoch.
        energy_best: Test NLL of the energy-based model, the flow's best epoch.
        energy_last: Test NLL of the energy-based model, last epoch.
        z_last: Normaliser of the energy-based model, last epoch.
    """

    name: str
    method: str
    seed: int
    num_samples: int
    epochs: int
    best: float
    last: float
    energy_best: float
    energy_last: float
    z_last: float


def keys(
    seeds: list[int], num_samples: int, epochs: int
) -> list[tuple[str, str, int, int, int]]:
    """Return the keys of all rows, seed by seed."""
    return [
        (name, method, seed, num_samples, epochs)
        for seed in seeds
        for name in PLANAR
        for method in METHODS
    ]


def train(
    folder: Path, name: str, method: str, seed: int, num_samples: int, epochs: int
) -> Row:
    """Train, measure, and write the maps of the last epoch to a file.

    Args:
        folder: Folder for the maps.
        name: One of `PLANAR`.
        method: One of `METHODS`.
        seed: Seed of points and networks.
        num_samples: Points for training and validation together.
        epochs: Epochs to train.
    """
    points, test = draw(name, num_samples, seed), draw(name, NUM_TEST, TEST_SEED)
    torch.manual_seed(seed)
    estimator = fit_for(epochs, points, estimator_of(METHODS[method]))
    latest = estimator.latest
    of_flow = [-float(model.log_prob(test).mean()) for model in (estimator, latest)]
    of_energy = [float("nan")] * 3
    maps: dict[str, Any] = {"flow": latest.log_prob(pixels())}
    if method == "ours":
        of_energy = [_energy_nll(model, test) for model in (estimator, latest)]
        of_energy.append(float(latest.agreement(NUM_DRAWS).log_z.exp()))
        maps["proxy"] = latest.proxy_log_prob(pixels())
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(map_file(folder, name, method, seed), **maps)
    return Row(name, method, seed, num_samples, epochs, *of_flow, *of_energy)


def pixels() -> Tensor:
    """Return the points of a map, shape `(rows, columns, 2)`, y going up by rows."""
    line = torch.linspace(-LIMIT, LIMIT, NUM_PIXELS)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1)


def map_file(folder: Path, name: str, method: str, seed: int) -> Path:
    """Return where the maps of a training are."""
    return folder / f"{name}-{method}-{seed}.npz"


def _energy_nll(model: PairDensity, test: Tensor) -> float:
    log_z = model.agreement(NUM_DRAWS).log_z
    return float(log_z - model.proxy_log_prob(test).mean())


def report(rows: pd.DataFrame) -> str:
    """Return the table in Markdown: best and last epoch of flows and energy."""
    lines, better, rises = [], 0, []
    for name in PLANAR:
        ours, flow = (
            rows[(rows["name"] == name) & (rows.method == m)] for m in ("ours", "flow")
        )
        better += ours["last"].mean() < flow["last"].mean()
        rises.append([(m["last"] - m["best"]).mean() for m in (ours, flow)])
        flows = (flow.best, flow.last, ours.best, ours.last)
        columns = (*flows, ours.energy_best, ours.energy_last)
        z_range = f"{ours.z_last.min():.2f} to {ours.z_last.max():.2f}"
        lines.append((name, *(spread(values, 3) for values in columns), z_range))
    ours_rises, alone_rises = zip(*rises, strict=True)
    (num,), (epochs,) = set(rows.num_samples), set(rows.epochs)
    return "\n\n".join(
        [
            f"{num:,} points, {epochs:,} epochs. Test NLL in nats on {NUM_TEST:,} "
            "points, mean ± standard deviation over seeds, of the flow's best held-out "
            "epoch and of the last epoch. The flow alone has the same shape. It is "
            "fitted by maximum likelihood with the same optimiser and the same average "
            "of weights.",
            f"At the last epoch, our flow is better than the flow alone on {better} of "
            f"{len(lines)}. From the best to the last epoch, test NLL of our flow rises "
            f"by up to {max(ours_rises):.2f} nats, that of the flow alone by up to "
            f"{max(alone_rises):.2f}.",
            table(
                (
                    "points",
                    "flow alone, best",
                    "flow alone, last",
                    "our flow, best",
                    "our flow, last",
                    "our energy, best",
                    "our energy, last",
                    "Z, last",
                ),
                lines,
            ),
        ]
    )


def figure(rows: pd.DataFrame, folder: Path) -> Figure:
    """Return maps of the last epoch, one row for each of `PLANAR`, of the first seed.

    Args:
        rows: As `train` returns them.
        folder: Where their maps are.
    """
    seed, num = rows.seed.min(), rows.num_samples.iloc[0]
    titles = ("points", "flow alone", "our flow", "our energy, exp f")
    with panels(4 * len(PLANAR), 1.7, 1.75, columns=4) as (result, axes):
        for k, name in enumerate(PLANAR):
            row = axes[4 * k : 4 * k + 4]
            x, y = draw(name, num, seed).T
            row[0].scatter(x, y, s=1, color="black")
            alone, ours = (
                np.load(map_file(folder, name, m, seed)) for m in ("flow", "ours")
            )
            log_maps = (alone["flow"], ours["flow"], ours["proxy"])
            brightest = np.exp(ours["flow"]).max()
            for axis, log_map in zip(row[1:], log_maps, strict=True):
                axis.imshow(
                    np.exp(np.minimum(log_map, log(1e6))),
                    extent=(-LIMIT, LIMIT, -LIMIT, LIMIT),
                    origin="lower",
                    cmap="viridis",
                    vmin=0,
                    vmax=brightest,
                )
            for axis, title in zip(row, titles, strict=True):
                axis.set(
                    xlim=(-LIMIT, LIMIT),
                    ylim=(-LIMIT, LIMIT),
                    xticks=[],
                    yticks=[],
                    aspect="equal",
                )
                axis.grid(False)
                if k == 0:
                    axis.set_title(title)
            row[0].set_ylabel(name)
    return result
