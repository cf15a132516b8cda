"""Densities in the plane to draw points from."""

import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import make_circles, make_moons
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
)

Sampler = Callable[[int, np.random.Generator], np.ndarray]


def moons(num: int, rng: np.random.Generator) -> np.ndarray:
    """Two half circles that interlock."""
    return make_moons(num, noise=0.07, random_state=_seed(rng))[0]


def rings(num: int, rng: np.random.Generator) -> np.ndarray:
    """Two circles, one within the other."""
    points = make_circles(num, factor=0.45, noise=0.05, random_state=_seed(rng))[0]
    return 1.5 * points


def checkerboard(num: int, rng: np.random.Generator) -> np.ndarray:
    """The dark squares of a board of four by four, over [-2, 2]²."""
    column = rng.integers(4, size=num)
    row = 2 * rng.integers(2, size=num) + column % 2
    return np.stack([column, row], 1) - 2 + rng.random((num, 2))


def pinwheel(num: int, rng: np.random.Generator) -> np.ndarray:
    """Five arms that bend more the further out they are."""
    arm = rng.integers(5, size=num)
    along, across = 1 + 0.3 * rng.normal(size=num), 0.08 * rng.normal(size=num)
    angle = 2 * math.pi * arm / 5 + 0.5 * np.exp(along)
    return 1.5 * _rotated(along, across, angle)


def spirals(num: int, rng: np.random.Generator) -> np.ndarray:
    """Two arms of one and a half turns."""
    angle = 3 * math.pi * np.sqrt(rng.random(num))
    sign = rng.choice([-1.0, 1.0], size=num)
    points = _rotated(sign * angle / 4, np.zeros(num), angle)
    return points + 0.08 * rng.normal(size=(num, 2))


def eight_gaussians(num: int, rng: np.random.Generator) -> np.ndarray:
    """Eight round Gaussians on a circle."""
    angle = 2 * math.pi * rng.integers(8, size=num) / 8
    centers = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centers + 0.2 * rng.normal(size=(num, 2))


PLANAR: dict[str, Sampler] = {
    "moons": moons,
    "rings": rings,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "spirals": spirals,
    "eight_gaussians": eight_gaussians,
}


def draw(name: str, num: int, seed: int) -> Tensor:
    """Return points of one of `PLANAR`, shape `(num, 2)`.

    Args:
        name: Name of the density.
        num: Number of points.
        seed: Seed of the generator.
    """
    return torch.from_numpy(PLANAR[name](num, np.random.default_rng(seed))).float()


def mixture() -> Distribution:
    """Return a mixture of five Gaussians of different widths and weights, in the plane.

    Its density is known, so divergences from it can be computed.
    """
    means = [[-2.0, -1.0], [-1.0, 1.5], [0.5, -0.5], [1.5, 1.5], [2.5, -1.5]]
    scales = torch.tensor([[0.3, 0.6], [0.5, 0.3], [0.25, 0.25], [0.6, 0.3], [0.3, 0.5]])
    parts = Independent(Normal(torch.tensor(means), scales), 1)
    weights = Categorical(torch.tensor([0.25, 0.2, 0.15, 0.2, 0.2]))
    return MixtureSameFamily(weights, parts)


def draw_mixture(num: int, seed: int) -> Tensor:
    """Return points of `mixture`, shape `(num, 2)`."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return mixture().sample((num,))


def _rotated(along: np.ndarray, across: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([along * cos - across * sin, along * sin + across * cos], 1)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
