"""Multipliers against fixed weights: 25 of these, as in Figure 2 of arXiv:2511.11159.

On a Gaussian mixture, all are trained equally long, past the point where overfitting
starts, and judged by the weights of the last epoch.
"""

import warnings
from collections.abc import Iterable
from itertools import product
from math import inf
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from sbi_jeffreys.benchmark.held_out import (
    NUM_PARTICLES,
    NUM_TEST_PAIRS,
    TEST_SEED,
    flow_nll,
)
from sbi_jeffreys.benchmark.report import measured_with, table
from sbi_jeffreys.benchmark.tasks import TASKS
from sbi_jeffreys.inference import JNPE
from sbi_jeffreys.objective import agreement
from sbi_jeffreys.plots.style import GREY, color_of, panels

TASK = "gaussian_mixture"
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the data terms' weights, for the flow and for the energy; the reverse KL's is 1."""

Z_RANGE = (0.8, 1.25)


class Setting(NamedTuple):
    """Weights of the flow's and the energy's fit to the data; NaN if resilient."""

    flow_weight: float
    energy_weight: float


RESILIENT = Setting(float("nan"), float("nan"))
SETTINGS = (RESILIENT, *(Setting(*pair) for pair in product(LEVELS, LEVELS)))


class Row(NamedTuple):
    """What came of one training; infinite if it diverged in its first epoch.

    Attributes:
        number: Of the setting in `SETTINGS`.
        seed: Of simulations and networks.
        num_simulations: For training and validation together.
        epochs: Trained.
        nll_best: Test NLL in nats of the flow of the best held-out epoch.
        nll_last: Of the flow of the last epoch.
        z_last: Mean over test x of the energy's normaliser, last epoch.
        nll_curve: Held-out NLL after each epoch, as words.
        z_curve: exp of the held-out mean of log Z after each epoch, as words.
    """

    number: int
    seed: int
    num_simulations: int
    epochs: int
    nll_best: float
    nll_last: float
    z_last: float
    nll_curve: str
    z_curve: str


def train(number: int, seed: int, num_simulations: int, epochs: int) -> Row:
    """Train with one setting, and measure.

    Args:
        number: Of the setting.
        seed: Of simulations and networks.
        num_simulations: For training and validation together.
        epochs: To train.
    """
    torch.set_num_threads(1)
    task, setting = TASKS[TASK], SETTINGS[number]
    options = (
        {}
        if number == 0
        else {
            "weighting": "fixed",
            "weights": (setting.flow_weight, 1.0, setting.energy_weight),
        }
    )
    torch.manual_seed(seed)
    trainer = JNPE(task.prior, show_progress_bars=False, **options)  # type: ignore[arg-type]
    trainer.append_simulations(*task.simulate(num_simulations, seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reaching `max_num_epochs` is the point
        try:
            best = trainer.train(stop_after_epochs=2 * epochs, max_num_epochs=epochs)
        except FloatingPointError:
            return Row(number, seed, num_simulations, epochs, inf, inf, inf, "inf", "inf")
    theta, x = task.simulate(NUM_TEST_PAIRS, TEST_SEED)
    with torch.no_grad():
        flow, energy = trainer.latest.given(x)
        draws, log_p = flow.rsample_and_log_prob(NUM_PARTICLES)
        log_z = agreement(log_p, energy(draws)).log_z
    history = trainer.summary
    return Row(
        number,
        seed,
        num_simulations,
        trainer.epoch,
        flow_nll(best, theta, x),
        flow_nll(trainer.latest.flow, theta, x),
        float(log_z.exp().mean()),
        _as_words(torch.tensor(history["validation_loss"])),
        _as_words(torch.tensor(history["validation_log_z"]).exp()),
    )


def run(
    seeds: Iterable[int], num_simulations: int, epochs: int, path: Path, jobs: int
) -> pd.DataFrame:
    """Train what is not in the file yet, and return its rows.

    Args:
        seeds: Of simulations and networks.
        num_simulations: For training and validation together.
        epochs: Of each training.
        path: CSV file of rows.
        jobs: Processes of one thread.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        pd.DataFrame(columns=list(Row._fields)).to_csv(path, index=False)
    done = {
        (row.number, row.seed, row.num_simulations, row.epochs)
        for row in _read(path).itertuples()
    }
    todo = [
        key
        for seed in seeds
        for number in range(len(SETTINGS))
        if (key := (number, seed, num_simulations, epochs)) not in done
    ]
    work = Parallel(jobs, return_as="generator_unordered")(
        delayed(train)(*key) for key in todo
    )
    for row in tqdm(work, total=len(todo), desc="Weights", unit=" trainings"):
        pd.DataFrame([row]).to_csv(path, mode="a", header=False, index=False)
    rows = _read(path)
    return rows[(rows.num_simulations == num_simulations) & (rows.epochs == epochs)]


def report(rows: pd.DataFrame) -> str:
    """Return the table of all settings, in Markdown, best last-epoch NLL first."""
    by_setting = rows.groupby("number")
    means = by_setting[["nll_best", "nll_last", "z_last"]].mean()
    spread = by_setting.nll_last.std()
    extremes = by_setting.z_last.agg(["min", "max"])
    lines = []
    for number in means.nll_last.sort_values().index:
        setting, mean = SETTINGS[number], means.loc[number]
        low, high = extremes.loc[number]
        fixed = (setting.flow_weight, 1, setting.energy_weight)
        lines.append(
            (
                "resilient" if number == 0 else " / ".join(f"{w:g}" for w in fixed),
                f"{mean.nll_best:.3f}",
                f"{mean.nll_last:.3f}"
                + ("" if pd.isna(spread[number]) else f" ± {spread[number]:.3f}"),
                f"{low:.3f} to {high:.3f}",
                "yes" if Z_RANGE[0] <= low and high <= Z_RANGE[1] else "no",
            )
        )
    rank = 1 + int((means.nll_last < means.nll_last[0]).sum())
    (num,), (epochs,) = set(rows.num_simulations), set(rows.epochs)
    columns = ("weights of D1 / D2 / D3", "best epoch", "last epoch", "Z", "Z in range")
    return "\n\n".join(
        [
            "# Multipliers against fixed weights",
            f"{TASK}, {num:,} simulations, {epochs} epochs each, seeds "
            f"{' '.join(map(str, sorted(set(rows.seed))))}: test NLL in nats of the "
            "flow, mean ± standard deviation over seeds; Z, the energy's normaliser in "
            f"the last epoch, lowest to highest, and whether within {Z_RANGE}.",
            f"Measured with {measured_with('cpu')}.",
            f"By the last epoch, resilient multipliers come {rank} of {len(means)}.",
            table(columns, lines),
        ]
    )


def figure(rows: pd.DataFrame) -> Figure:
    """Return held-out NLL and Z over the epochs, of the first seed there is."""
    rows = rows[rows.seed == rows.seed.min()]
    with panels(2, 4.2, 3.0, columns=2) as (result, axes):
        for axis, column, label in zip(
            axes,
            ("nll_curve", "z_curve"),
            ("held-out NLL, nats", "Z (held out)"),
            strict=True,
        ):
            for row in rows.sort_values("number", ascending=False).itertuples():
                curve = [float(word) for word in getattr(row, column).split()]
                resilient = row.number == 0
                axis.plot(
                    range(1, 1 + len(curve)),
                    curve,
                    color=color_of("flow") if resilient else GREY,
                    alpha=1.0 if resilient else 0.3,
                    linewidth=1.8 if resilient else 0.7,
                    label="resilient" if resilient else None,
                )
            axis.set(xlabel="epoch", ylabel=label)
        low = min(float(min(c.split(), key=float)) for c in rows.nll_curve)
        axes[0].set_ylim(low - 0.1, low + 2.5)
        axes[1].set(yscale="log", ylim=(0.1, 10))
        axes[1].axhspan(*Z_RANGE, color=color_of("flow"), alpha=0.1)
        axes[0].legend()
    return result


def _read(path: Path) -> pd.DataFrame:
    """Return all rows; a curve of one epoch is read as words, too."""
    return pd.read_csv(path, dtype={"nll_curve": str, "z_curve": str})


def _as_words(values: torch.Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.tolist())
