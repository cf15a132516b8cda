"""The experiments, the paper's claim for each, and the pages with our results."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.accuracy import cells, standings
from benchmarks.paper import (
    duality,
    latent_images,
    long_training,
    planar_densities,
    simulations,
    weights,
)
from benchmarks.report import words, write
from benchmarks.rows import finish

SOURCE = "[arXiv:2511.11159](https://arxiv.org/abs/2511.11159)"


class Effort(NamedTuple):
    """How much is trained.

    Attributes:
        seeds: Seeds of data and networks.
        num_samples: Points or simulations for training and validation together.
        epochs: Epochs to train. No effect where training stops by itself.
    """

    seeds: list[int]
    num_samples: int
    epochs: int


@dataclass
class Experiment(ABC):
    """An experiment of the paper.

    Attributes:
        title: Title of its page.
        claim: What the paper says, in our words.
        effort: Default effort.
    """

    title: str
    claim: str
    effort: Effort

    @abstractmethod
    def run(self, effort: Effort, folder: Path, jobs: int) -> pd.DataFrame:
        """Compute what is missing in the folder, in processes of one thread."""

    @abstractmethod
    def answer(self, rows: pd.DataFrame) -> str:
        """Return tables and a verdict, in Markdown."""

    @abstractmethod
    def figure(self, rows: pd.DataFrame, folder: Path) -> Figure:
        """Return the figure."""

    def selected_by(self, name: str) -> str:
        """Return the option of the command that names the experiment."""
        return f"--experiments {name}"

    def page(self, name: str, effort: Effort, output: Path, jobs: int) -> str:
        """Run, write the page with its figure and its rows, and return its text.

        Args:
            name: Name of the experiment and of its files.
            effort: How much is trained.
            output: Folder of all pages.
            jobs: Number of processes.
        """
        rows = self.run(effort, output / name, jobs)
        path = output / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.figure(rows, output / name).savefig(path.with_suffix(".png"), dpi=110)
        command = [f"python -m benchmarks paper {self.selected_by(name)}"]
        if effort.seeds != self.effort.seeds:
            command.append(f"--seeds {words(effort.seeds)}")
        if effort.num_samples != self.effort.num_samples:
            command.append(f"--num-samples {effort.num_samples}")
        if effort.epochs != self.effort.epochs:
            command.append(f"--epochs {effort.epochs}")
        text = "\n\n".join(
            [
                f"# {self.title}",
                f"The paper ({SOURCE}) claims, as we know it from its abstract, theorem, "
                f"figures and reviews: {self.claim}",
                f"    {' '.join(command)}",
                f"Seeds {words(rows.seed)}. Measured with "
                f"{'; '.join(sorted(set(rows.measured_with)))}.",
                self.answer(rows),
                f"![{name}]({name}.png)",
            ]
        )
        write(path, text)
        return text


@dataclass
class Trainings(Experiment):
    """An experiment whose rows are independent trainings, described by a module.

    Attributes:
        module: Module with `Row`, `keys`, `train`, `report` and `figure`.
        leaves_files: Whether `train` and `figure` get a folder for other files.
    """

    module: ModuleType
    leaves_files: bool = False

    def run(self, effort: Effort, folder: Path, jobs: int) -> pd.DataFrame:
        """See the base class."""
        keys = self.keys(effort)
        train: Callable[..., NamedTuple] = self.module.train
        if self.leaves_files:
            train = partial(train, folder)
        path = folder.with_suffix(".csv")
        return finish(train, keys, path, jobs, self.module.Row._fields)

    def keys(self, effort: Effort) -> list[tuple[Any, ...]]:
        """Return the keys of the rows wanted."""
        return self.module.keys(*effort)

    def answer(self, rows: pd.DataFrame) -> str:
        """See the base class."""
        return self.module.report(rows)

    def figure(self, rows: pd.DataFrame, folder: Path) -> Figure:
        """See the base class."""
        arguments = (rows, folder) if self.leaves_files else (rows,)
        return self.module.figure(*arguments)


@dataclass
class Faces(Trainings):
    """The experiment with images of CelebA instead of digits.

    Attributes:
        source: CelebA's folder, as in `images.celeba`.
    """

    source: Path = Path()

    def keys(self, effort: Effort) -> list[tuple[Any, ...]]:
        """See the base class."""
        return latent_images.keys(*effort, source=str(self.source))

    def selected_by(self, name: str) -> str:
        """See the base class."""
        return f"--experiments latent_images --celeba {self.source}"


@dataclass
class Simulations(Experiment):
    """Simulation-based inference, from cells of the benchmark."""

    def run(self, effort: Effort, folder: Path, jobs: int) -> pd.DataFrame:
        """See the base class."""
        wanted = simulations.wanted(effort.seeds, effort.num_samples)
        cells.run(wanted, [simulations.CLASSIFIER], folder, jobs)
        finished = cells.read([folder / "cells.csv"])
        return finished[
            (finished.num_simulations == effort.num_samples)
            & finished.seed.isin(effort.seeds)
        ]

    def answer(self, rows: pd.DataFrame) -> str:
        """See the base class."""
        return simulations.report(rows)

    def figure(self, rows: pd.DataFrame, folder: Path) -> Figure:
        """See the base class."""
        return standings.overview(rows)


EXPERIMENTS: dict[str, Experiment] = {
    "weights": Trainings(
        "Multipliers against 25 fixed weightings (Figure 2)",
        "on a Gaussian mixture in the plane, the constrained problem has a lower and "
        "more stable test NLL over the training than any fixed weighting of the "
        "divergences. The energy's normaliser stays at one.",
        Effort([0, 1, 2], 500, 500),
        weights,
    ),
    "long_training": Trainings(
        "A long training on few points (Figure 3)",
        "the method is stable at a high and at a low learning rate. A flow fitted by "
        "maximum likelihood overfits there. A Wasserstein GAN with gradient penalty "
        "oscillates or is slow.",
        Effort([0, 1, 2], 500, 800),
        long_training,
    ),
    "planar_densities": Trainings(
        "Densities in the plane (Figure 4)",
        "on small data sets a flow's test NLL rises with further training. On the "
        "authors' page it rises from about 0.5 nats at best to between 1.0 and 1.6, "
        "while both of their models stay near 0.35. The energy-based model's "
        "unnormalised density (the quasi-normalised proxy) shows sharper modes.",
        Effort([0, 1, 2, 3, 4], 500, 500),
        planar_densities,
        leaves_files=True,
    ),
    "latent_images": Trainings(
        "Images from a latent space (Figure 5)",
        "with codes of an autoencoder (100 numbers for CelebA), their flow makes better "
        "images than a flow fitted by maximum likelihood, by the Fréchet distance. This "
        "page has digits, unless `--celeba FOLDER` is given.",
        Effort([0, 1, 2], 1000, 500),
        latent_images,
        leaves_files=True,
    ),
    "simulations": Simulations(
        "Simulation-based inference from few simulations",
        "with few simulations, their flow is a better posterior than a flow fitted by "
        "maximum likelihood (NF).",
        Effort([0, 1], 1000, 0),
    ),
    "duality": Trainings(
        "The duality gap (Theorem 1)",
        "where models are rich enough and the objective is convex in the densities, the "
        "dual problem has nearly the value of the constrained problem.",
        Effort([0, 1, 2], 500, 300),
        duality,
    ),
}


def faces(folder: Path) -> Faces:
    """Return the experiment with images of CelebA.

    Args:
        folder: CelebA's folder, as in `images.celeba`.
    """
    digits = EXPERIMENTS["latent_images"]
    return Faces(
        digits.title, digits.claim, digits.effort, latent_images, True, source=folder
    )
