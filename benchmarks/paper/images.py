"""Images as rows of pixels with labels: scikit-learn's digits, and CelebA."""

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
    """Training and test images, with pixels from 0 to 1.

    Attributes:
        train: Training images, shape `(N, pixels)`.
        test: Test images, shape `(M, pixels)`.
        train_labels: Labels of training images, shape `(N,)`.
        test_labels: Labels of test images, shape `(M,)`.
        shape: Shape of an image, `(height, width)` or `(height, width, 3)`.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    shape: tuple[int, ...]


def load(source: str, num: int, seed: int) -> Images:
    """Return the digits, or the faces in a folder.

    Args:
        source: `DIGITS`, or the path of CelebA's folder.
        num: Number of training images.
        seed: Seed of the split.

    Raises:
        FileNotFoundError: If the folder does not hold CelebA.
        ValueError: If there are too few images.
    """
    return digits(num, seed) if source == DIGITS else celeba(Path(source), num, seed)


def digits(num: int, seed: int) -> Images:
    """Return the 1,797 digits of 8 by 8 pixels.

    Args:
        num: Number of training images. The rest are test images.
        seed: Seed of the split.
    """
    pixels, labels = load_digits(return_X_y=True)
    return _split(pixels / 16, labels, num, seed, (8, 8))


def celeba(folder: Path, num: int, seed: int) -> Images:
    """Return faces of CelebA, cut to squares and reduced to 32 by 32 pixels.

    Args:
        folder: Folder with `list_attr_celeba.txt`, and the images in `img_align_celeba`.
        num: Number of training images, and of test images. They are the list's first.
        seed: Seed of the split.

    Raises:
        FileNotFoundError: If the folder does not hold CelebA.
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
