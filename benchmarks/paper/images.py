"""Images, as rows of pixels with labels: digits that scikit-learn ships, and CelebA."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

DIGITS = "digits"
CELEBA_LABEL = "Male"
CELEBA_SIZE = 32


class Images(NamedTuple):
    """Images to train on and to test with, pixels from 0 to 1.

    Attributes:
        train: Shape `(N, pixels)`.
        test: Likewise.
        train_labels: Shape `(N,)`.
        test_labels: Likewise.
        shape: Of an image, `(height, width)` or `(height, width, 3)`.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    shape: tuple[int, ...]


def load(source: str, num: int, seed: int) -> Images:
    """Return the digits, if that is the source, or else the faces of a folder.

    Args:
        source: `DIGITS`, or the path of CelebA's folder.
        num: To train on.
        seed: Of the split.

    Raises:
        FileNotFoundError: If there is no CelebA in the folder.
        ValueError: If there are fewer images.
    """
    return digits(num, seed) if source == DIGITS else celeba(Path(source), num, seed)


def digits(num: int, seed: int) -> Images:
    """Return the 1,797 digits of 8 by 8 pixels.

    Args:
        num: To train on; the rest are to test with.
        seed: Of the split.
    """
    pixels, labels = load_digits(return_X_y=True)
    return _split(pixels / 16, labels, num, seed, (8, 8))


def celeba(folder: Path, num: int, seed: int) -> Images:
    """Return faces of CelebA, cut to squares and reduced to 32 by 32 pixels.

    Args:
        folder: With `list_attr_celeba.txt`, and the images in `img_align_celeba`.
        num: To train on, and as many to test with: the first ones of the list.
        seed: Of the split.

    Raises:
        FileNotFoundError: If the folder is another.
    """
    table = pd.read_csv(
        folder / "list_attr_celeba.txt", sep=r"\s+", skiprows=1, nrows=2 * num
    )
    faces = [_face(folder / "img_align_celeba" / name) for name in table.index]
    pixels = np.stack(faces).reshape(len(faces), -1)
    labels = (table[CELEBA_LABEL] > 0).to_numpy().astype(int)
    return _split(pixels, labels, num, seed, (CELEBA_SIZE, CELEBA_SIZE, 3))


def _face(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        width, height = image.size
        edge = (height - width) // 2
        square = image.convert("RGB").crop((0, edge, width, edge + width))
        return np.asarray(square.resize((CELEBA_SIZE, CELEBA_SIZE))) / 255


def _split(
    pixels: np.ndarray, labels: np.ndarray, num: int, seed: int, shape: tuple[int, ...]
) -> Images:
    parts = train_test_split(
        pixels, labels, train_size=num, random_state=seed, stratify=labels
    )
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return Images(train.float(), test.float(), train_labels, test_labels, shape)
