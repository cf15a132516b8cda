"""Images made in the latent space of an autoencoder: Figure 5 of arXiv:2511.11159.

Flows are trained on the codes of few images. They draw new codes, which are decoded. The
Fréchet distance between Gaussians fitted to features of a classifier compares generated
images with test images.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.paper.fits import METHODS, estimator_of, fit_for
from benchmarks.paper.images import DIGITS, Images, load
from benchmarks.report import spread, table
from sbi_jeffreys.density import PairDensity
from sbi_jeffreys.plots.style import panels

NUM_LATENTS = {"digits": 16, "faces": 100}
NUM_FEATURES = 64
NUM_MADE = 5000
GRID = 6
AUTOENCODER_EPOCHS = 300


class Row(NamedTuple):
    """Results of one training.

    Attributes:
        source: `DIGITS`, or the path of CelebA.
        method: One of `METHODS`.
        seed: Seed of the split and of all networks.
        num_samples: Images to train on.
        epochs: Epochs trained.
        distance_best: Fréchet distance of the flow, best held-out epoch.
        distance_last: Fréchet distance of the flow, last epoch.
        distance_codes: Fréchet distance of training images, encoded and decoded: the
            lowest to be expected.
        nll_best: Test NLL of codes in nats, best held-out epoch.
        nll_last: Test NLL of codes in nats, last epoch.
    """

    source: str
    method: str
    seed: int
    num_samples: int
    epochs: int
    distance_best: float
    distance_last: float
    distance_codes: float
    nll_best: float
    nll_last: float


def keys(
    seeds: list[int], num_samples: int, epochs: int, source: str = DIGITS
) -> list[tuple[str, str, int, int, int]]:
    """Return the keys of all rows, seed by seed."""
    return [
        (source, method, seed, num_samples, epochs)
        for seed in seeds
        for method in METHODS
    ]


class Autoencoder(nn.Module):
    """Networks from pixels to codes and back, with one hidden layer each."""

    def __init__(self, pixels: int, latents: int) -> None:
        """
        Args:
            pixels: Number of pixels of an image.
            latents: Entries of a code. The hidden layers are eight times as wide.
        """
        super().__init__()
        hidden = 8 * latents
        self.encode = _mlp(pixels, hidden, latents)
        self.decode = nn.Sequential(_mlp(latents, hidden, pixels), nn.Sigmoid())

    def fit(self, images: Tensor, epochs: int, noise: float = 0.1) -> None:
        """Train to restore images from codes to which noise was added.

        Args:
            images: Shape `(N, pixels)`, from 0 to 1.
            epochs: Epochs to train.
            noise: Standard deviation of the noise. Codes have about 1. With noise,
                similar codes decode to similar images.
        """
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)
        for _ in range(epochs):
            for batch in images[torch.randperm(len(images))].split(100):
                codes = self.encode(batch)
                size = (codes.square().mean(0) - 1).square().mean()
                noisy = codes + noise * torch.randn_like(codes)
                loss = mse_loss(self.decode(noisy), batch) + 1e-3 * size
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class Features:
    """The hidden layer of a classifier that was trained on labelled images."""

    def __init__(self, images: Images, seed: int) -> None:
        """
        Args:
            images: Images, whose training part is used.
            seed: Seed of the classifier.
        """
        self.classifier = MLPClassifier((NUM_FEATURES,), random_state=seed, max_iter=500)
        self.classifier.fit(images.train.numpy(), images.train_labels.numpy())

    def __call__(self, pixels: Tensor) -> np.ndarray:
        """Return features, shape `(N, 64)`, of images `(N, pixels)`."""
        weights, bias = self.classifier.coefs_[0], self.classifier.intercepts_[0]
        return np.maximum(pixels.numpy() @ weights + bias, 0)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    r"""Return $|\mu - \mu'|^2 + \mathrm{tr}(C + C' - 2 (C C')^{1/2})$ of two samples.

    From Heusel et al., arXiv:1706.08500, who take features of an Inception network.

    Args:
        one: Features, shape `(N, F)`.
        other: Features, shape `(M, F)`.
    """
    means = one.mean(0), other.mean(0)
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    squares = np.linalg.eigvals(covariances[0] @ covariances[1]).real
    roots = np.sqrt(squares.clip(min=0))  # their sum is the trace of the root
    shift = np.square(means[0] - means[1]).sum()
    return float(shift + np.trace(covariances[0] + covariances[1]) - 2 * roots.sum())


def train(
    folder: Path, source: str, method: str, seed: int, num_samples: int, epochs: int
) -> Row:
    """Train autoencoder, classifier and flow on images, and measure.

    Args:
        folder: Folder for the generated images. Both methods get the same noise.
        source: `DIGITS`, or the path of CelebA.
        method: One of `METHODS`.
        seed: Seed of the split and of all networks.
        num_samples: Images to train on.
        epochs: Epochs to train the flow.
    """
    images = load(source, num_samples, seed)
    torch.manual_seed(seed)
    autoencoder = Autoencoder(images.train.shape[-1], NUM_LATENTS[_kind(source)])
    autoencoder.fit(images.train, AUTOENCODER_EPOCHS)
    features = Features(images, seed)
    with torch.no_grad():
        codes, test_codes = map(autoencoder.encode, (images.train, images.test))
        restored = autoencoder.decode(codes)
    real = features(images.test)

    estimator = fit_for(epochs, codes, estimator_of(METHODS[method]))
    made = [_make(model, autoencoder, seed) for model in (estimator, estimator.latest)]
    folder.mkdir(parents=True, exist_ok=True)
    grid = torch.stack([pixels[: GRID**2] for pixels in made])
    np.save(folder / f"{method}-{seed}.npy", grid.reshape(2, GRID**2, *images.shape))
    distances = [frechet_distance(features(pixels), real) for pixels in (*made, restored)]
    losses = [
        -float(m.log_prob(test_codes).mean()) for m in (estimator, estimator.latest)
    ]
    return Row(source, method, seed, num_samples, epochs, *distances, *losses)


@torch.no_grad()
def _make(model: PairDensity, autoencoder: Autoencoder, seed: int) -> Tensor:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return autoencoder.decode(model.sample((NUM_MADE,)))


def _kind(source: str) -> str:
    return "digits" if source == DIGITS else "faces"


def report(rows: pd.DataFrame) -> str:
    """Return the table, in Markdown."""
    names = {"flow": "flow alone", "ours": "our flow"}
    lines = [
        (
            name,
            *(
                spread(rows[rows.method == method][column], 2)
                for column in ("distance_best", "distance_last", "nll_best", "nll_last")
            ),
        )
        for method, name in names.items()
    ]
    last = rows.pivot(index="seed", columns="method", values="distance_last")
    better = int((last.ours < last.flow).sum())
    (source,), (num,), (epochs,) = map(set, (rows.source, rows.num_samples, rows.epochs))
    kind = _kind(source)
    return "\n\n".join(
        [
            f"{num:,} {kind}, codes of {NUM_LATENTS[kind]} numbers, {epochs:,} epochs. "
            f"The table has the Fréchet distance between {NUM_MADE:,} generated images "
            f"and the test images, in {NUM_FEATURES} features of a classifier, and the "
            "test NLL of codes in nats. Values are means ± standard deviation over "
            "seeds. The training images, encoded and decoded, are at a distance of "
            f"{spread(rows[rows.method == 'ours'].distance_codes, 2)}.",
            f"At the last epoch, our flow's distance is the lower one on {better} of "
            f"{len(last)} seeds.",
            "The distance does not punish memorising. A generator that repeats codes of "
            "the training images makes images as near to the test images as the training "
            "images are. NLL punishes memorising, but it hardly shows mass in a wrong "
            "place. `ablations.md` has the variants that were tried on digits.",
            table(
                (
                    "method",
                    "distance, best epoch",
                    "distance, last epoch",
                    "NLL, best epoch",
                    "NLL, last epoch",
                ),
                lines,
            ),
        ]
    )


def figure(rows: pd.DataFrame, folder: Path) -> Figure:
    """Return images made by both methods from the same noise, first seed.

    Args:
        rows: As `train` returns them.
        folder: Where the images are.
    """
    seed = rows.seed.min()
    titles = {"flow": "flow alone", "ours": "our flow"}
    with panels(4, 2.4, 2.6, columns=4) as (result, axes):
        for k, (method, title) in enumerate(titles.items()):
            grids = np.load(folder / f"{method}-{seed}.npy")
            for axis, grid, epoch in zip(
                axes[k::2], grids, ("best", "last"), strict=True
            ):
                axis.imshow(_tiled(grid), cmap="gray_r", vmin=0, vmax=1)
                axis.set(title=f"{title}, {epoch} epoch", xticks=[], yticks=[])
                axis.grid(False)
    return result


def _tiled(images: np.ndarray) -> np.ndarray:
    """Return all images as one, with a pixel between them."""
    margins = [(0, 0), (1, 1), (1, 1), *[(0, 0)] * (images.ndim - 3)]
    padded = np.pad(images, margins).reshape(
        GRID, GRID, *np.add(images.shape[1:3], 2), -1
    )
    return np.concatenate(np.concatenate(padded, 1), 1).squeeze()
