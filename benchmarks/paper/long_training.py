"""A long training on few points, at a high and a low rate: Figure 3 of arXiv:2511.11159.

Three methods are compared: the constrained Jeffreys method, a flow of the same shape
fitted by maximum likelihood alone, and a Wasserstein GAN. A GAN has no density, so all
three are judged by the same
estimate from samples. Flows are also judged by their exact divergence.
"""

from collections.abc import Iterator
from math import log, nan
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.spatial import KDTree
from torch import Tensor

from benchmarks.paper.fits import METHODS, estimator_of, fit_for
from benchmarks.paper.planar import draw_mixture, mixture
from benchmarks.paper.wgan import WGAN
from benchmarks.report import spread, table
from benchmarks.rows import curve, numbers
from sbi_jeffreys.plots.style import color_of, legend_below, panels

CONTENDERS = (*METHODS, "WGAN-GP")
RATES = {"high": 5e-3, "low": 5e-4}
"""Learning rates of flow, generator and critic. Our energy's is twice as high."""

NUM_TEST, TEST_SEED = 2000, 10_000
NUM_POINTS_OF_CURVE = 40


class Row(NamedTuple):
    """Results of one training.

    Attributes:
        method: One of `CONTENDERS`.
        rate: One of `RATES`.
        seed: Seed of points and networks.
        num_samples: Points for training and validation together.
        epochs: Epochs trained.
        knn_curve: KL(mixture || model) in nats, from samples of both.
        kl_curve: The same from densities, where the model has one.
    """

    method: str
    rate: str
    seed: int
    num_samples: int
    epochs: int
    knn_curve: str
    kl_curve: str


def keys(
    seeds: list[int], num_samples: int, epochs: int
) -> list[tuple[str, str, int, int, int]]:
    """Return the keys of all rows, seed by seed."""
    return [
        (method, rate, seed, num_samples, epochs)
        for seed in seeds
        for rate in RATES
        for method in CONTENDERS
    ]


def train(method: str, rate: str, seed: int, num_samples: int, epochs: int) -> Row:
    """Train, and measure along the way.

    Args:
        method: One of `CONTENDERS`.
        rate: One of `RATES`.
        seed: Seed of points and networks.
        num_samples: Points for training and validation together.
        epochs: Epochs to train.
    """
    points = draw_mixture(num_samples, seed)
    test = draw_mixture(NUM_TEST, TEST_SEED)
    torch.manual_seed(seed)
    stages = _train_gan if method == "WGAN-GP" else _train_flow
    knn, exact = zip(*stages(method, points, RATES[rate], epochs, test), strict=True)
    return Row(method, rate, seed, num_samples, epochs, curve(knn), curve(exact))


def epochs_of_curve(epochs: int) -> list[int]:
    """Return the numbers of epochs after which a curve has its points."""
    return np.unique(np.linspace(1, epochs, NUM_POINTS_OF_CURVE).astype(int)).tolist()


def _train_flow(
    method: str, points: Tensor, learning_rate: float, epochs: int, test: Tensor
) -> Iterator[tuple[float, float]]:
    estimator = estimator_of(METHODS[method])
    exact = mixture().log_prob(test).mean()
    for k, stage in enumerate(epochs_of_curve(epochs)):
        fit_for(
            stage,
            points,
            estimator,
            learning_rate=learning_rate,
            stop_after_epochs=2 * epochs,
            resume_training=k > 0,
        )
        latest = estimator.latest
        kl = float(exact - latest.log_prob(test).mean())
        yield knn_divergence(test, latest.sample((NUM_TEST,))), kl


def _train_gan(
    method: str, points: Tensor, learning_rate: float, epochs: int, test: Tensor
) -> Iterator[tuple[float, float]]:
    gan, done = WGAN(points, learning_rate), 0
    for stage in epochs_of_curve(epochs):
        while done < stage:
            gan.epoch(batch_size=200)
            done += 1
        yield knn_divergence(test, gan.sample(NUM_TEST)), nan


def knn_divergence(reference: Tensor, samples: Tensor) -> float:
    r"""Estimate KL(reference ‖ samples) in nats, from nearest neighbours.

    .. math:: \frac{D}{n} \sum_i \log \frac{\nu_i}{\rho_i} + \log \frac{m}{n - 1}

    where $\nu_i$ and $\rho_i$ are the distances from point i of the reference to the
    nearest of m samples and of the other n − 1 points (Wang, Kulkarni & Verdú, 2009).

    Args:
        reference: Shape `(n, D)`.
        samples: Shape `(m, D)`.
    """
    others = KDTree(reference).query(reference, k=2)[0][:, 1]
    nearest = KDTree(samples).query(reference)[0]
    tiny = np.finfo(np.float32).tiny
    ratios = np.log(np.maximum(nearest, tiny) / np.maximum(others, tiny))
    return float(
        reference.shape[1] * ratios.mean() + log(len(samples) / (len(others) - 1))
    )


def report(rows: pd.DataFrame) -> str:
    """Return the table, in Markdown: least and last divergence of each training."""
    lines: list[tuple[str, ...]] = []
    rises: list[tuple[str, ...]] = []
    for rate in RATES:
        for method in CONTENDERS:
            of_method = rows[(rows.method == method) & (rows.rate == rate)]
            cells, rise = [], []
            for column in ("knn_curve", "kl_curve"):
                curves = pd.DataFrame([numbers(entry) for entry in of_method[column]])
                least, last = curves.min(axis=1), curves.iloc[:, -1]
                if curves.notna().all(axis=None):
                    rise.append(f"{(last - least).mean():.2f}")
                    cells += [spread(least, 3), spread(last, 3)]
                else:
                    rise.append("")
                    cells += ["", ""]
            rises.append((method, rate, *rise))
            lines.append((method, f"{rate} ({RATES[rate]:g})", *cells))
    (num,), (epochs,) = set(rows.num_samples), set(rows.epochs)
    columns = (
        "method",
        "rate",
        "KL from samples, least",
        "last",
        "exact KL, least",
        "last",
    )
    return "\n\n".join(
        [
            f"{num:,} points of a mixture of five Gaussians in the plane, {epochs:,} "
            "epochs. KL(mixture || model) in nats, mean ± standard deviation over seeds: "
            "the lowest of the training, as if stopped by an oracle, and the last.",
            "The rise of KL(mixture || model) from its lowest to its last, in nats:",
            table(("method", "rate", "from samples", "exact"), rises),
            table(columns, lines),
        ]
    )


def figure(rows: pd.DataFrame) -> Figure:
    """Return divergence from samples over the epochs: means, and ranges over seeds."""
    with panels(2, 4.2, 3.0, columns=2) as (result, axes):
        for axis, rate in zip(axes, RATES, strict=True):
            for method in CONTENDERS:
                of_method = rows[(rows.method == method) & (rows.rate == rate)]
                curves = np.array([numbers(words) for words in of_method.knn_curve])
                epochs = epochs_of_curve(of_method.epochs.iloc[0])
                color = color_of(method)
                axis.plot(epochs, curves.mean(0), color=color, label=method)
                axis.fill_between(
                    epochs, curves.min(0), curves.max(0), color=color, alpha=0.15
                )
            axis.set(
                xlabel="epoch",
                ylabel="KL(mixture ‖ model), nats",
                title=f"learning rate {RATES[rate]:g}",
                ylim=(-0.1, 2.5),
            )
        legend_below(result, axes[0])
    return result
