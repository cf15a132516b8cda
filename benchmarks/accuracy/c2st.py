r"""Classifier two-sample tests: how well a classifier separates samples and reference.

The score is the accuracy of a classifier in five-fold cross-validation: 0.5 is perfect, 1
useless (Lopez-Paz & Oquab, arXiv:1610.06545). It depends on the classifier. The random
forest is sbi's. The network is that of Lueckmann et al. (2021), scikit-learn's
`MLPClassifier` with two hidden layers of 10 D units. Here the networks of all folds train
at once. One fold alone has the same expectation for a fifth of the work. Its standard
error is at most 0.008, from the 4,000 samples it is tested on.
"""

import math
from itertools import islice, pairwise

import torch
from sbi.utils.metrics import c2st
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import KFold
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

NUM_FOLDS = 5
BATCH_SIZE = 200
PENALTY = 1e-4
TOLERANCE, PATIENCE = 1e-4, 10
MAX_NUM_EPOCHS = 10_000


def c2st_random_forest(reference: Tensor, samples: Tensor, seed: int = 1) -> float:
    """Return the accuracy of a random forest, sbi's default.

    Args:
        reference: Reference samples, shape `(N, D)`. Both are z-scored by them.
        samples: Samples to compare, shape `(N, D)`.
        seed: Seed of the forest and the folds.
    """
    return float(c2st(reference, samples, seed=seed, classifier="rf"))


def c2st_random_forest_fold(reference: Tensor, samples: Tensor, seed: int = 1) -> float:
    """Return the accuracy of the same forest on the first of the five folds.

    Args:
        reference: Reference samples, shape `(N, D)`. Both are z-scored by them.
        samples: Samples to compare, shape `(N, D)`.
        seed: Seed of the forest and the folds.
    """
    rows, labels = _standardized(reference, samples)
    train, test = next(KFold(NUM_FOLDS, shuffle=True, random_state=seed).split(rows))
    forest = RandomForestClassifier(random_state=seed).fit(rows[train], labels[train])
    return float(forest.score(rows[test], labels[test]))


def c2st_mlp(reference: Tensor, samples: Tensor, seed: int = 1) -> float:
    """Return the accuracy of a network, as in sbibm.

    Each fold's network trains, by Adam at scikit-learn's defaults, until its loss has
    not fallen by 1e-4 for more than ten epochs.

    Args:
        reference: Reference samples, shape `(N, D)`. Both are z-scored by them.
        samples: Samples to compare, shape `(N, D)`.
        seed: Seed of the networks and the folds.

    Raises:
        ValueError: If a value is NaN or infinite.
        RuntimeError: If a network's loss still falls after 10,000 epochs.
    """
    return _accuracy_of_networks(reference, samples, seed, NUM_FOLDS)


def c2st_mlp_fold(reference: Tensor, samples: Tensor, seed: int = 1) -> float:
    """Return the accuracy of the same network on the first of the five folds.

    Args:
        reference: Reference samples, shape `(N, D)`. Both are z-scored by them.
        samples: Samples to compare, shape `(N, D)`.
        seed: Seed of the network and the folds.

    Raises:
        ValueError: If a value is NaN or infinite.
        RuntimeError: If the network's loss still falls after 10,000 epochs.
    """
    return _accuracy_of_networks(reference, samples, seed, 1)


def _accuracy_of_networks(
    reference: Tensor, samples: Tensor, seed: int, num: int
) -> float:
    """Train a network on each of the first `num` folds; return their mean accuracy."""
    if not (reference.isfinite().all() and samples.isfinite().all()):
        raise ValueError("Expected finite `reference` and `samples`.")
    rows, labels = _standardized(reference, samples)
    folds = KFold(NUM_FOLDS, shuffle=True, random_state=seed).split(rows)
    train, test = zip(*islice(folds, num), strict=True)
    size = min(map(len, train)), min(map(len, test))
    trained_on = torch.stack([torch.from_numpy(index[: size[0]]) for index in train])
    tested_on = torch.stack([torch.from_numpy(index[: size[1]]) for index in test])
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = _Networks(num, rows.shape[-1])
        best = _fit(network, rows[trained_on], labels[trained_on])
        with torch.no_grad():
            right = (best(rows[tested_on]) > 0) == labels[tested_on].bool()
    return float(right.float().mean())


def _standardized(reference: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows, shape `(2 N, D)`, and labels: 0 for the reference, 1 for samples."""
    mean, sd = reference.mean(0), reference.std(0)
    rows = torch.cat([reference, samples]).sub(mean).div(sd).float()
    return rows, torch.cat([torch.zeros(len(reference)), torch.ones(len(samples))])


class _Networks(torch.nn.Module):
    """Several networks of the same shape, one for each fold."""

    def __init__(self, num: int, features: int) -> None:
        super().__init__()
        sizes = [features, 10 * features, 10 * features, 1]
        shapes = [
            shape
            for fan_in, fan_out in pairwise(sizes)
            for shape in ((fan_in, fan_in, fan_out), (fan_in, 1, fan_out))
        ]
        self.layers = torch.nn.ParameterList()
        for fan_in, rows, fan_out in shapes:
            bound = math.sqrt(6 / (fan_in + fan_out))  # Glorot's, for biases too
            self.layers.append(torch.empty(num, rows, fan_out).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits, shape `(num, N)`, of rows `(num, N, D)`."""
        *hidden, weight, bias = self.layers
        for w, b in zip(hidden[::2], hidden[1::2], strict=True):
            rows = torch.baddbmm(b, rows, w).relu()
        return torch.baddbmm(bias, rows, weight).squeeze(-1)


def _fit(network: _Networks, rows: Tensor, labels: Tensor) -> _Networks:
    """Train each network until it stalls, and return them as each then was."""
    num, size = labels.shape
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    weights = list(network.layers)[::2]
    stopped = _Networks(num, rows.shape[-1]).requires_grad_(False)
    lowest, stalled = torch.full((num,), torch.inf), torch.zeros(num)
    running = torch.ones(num, dtype=torch.bool)
    fold = torch.arange(num)[:, None]
    for _ in range(MAX_NUM_EPOCHS):
        order = torch.rand(num, size).argsort(-1)
        losses = torch.zeros(num)
        for batch in order.split(BATCH_SIZE, -1):
            logits = network(rows[fold, batch])
            fit = binary_cross_entropy_with_logits(
                logits, labels[fold, batch], reduction="none"
            ).mean(-1)
            decay = sum(w.square().sum((1, 2)) for w in weights) / batch.shape[1]
            loss = fit + PENALTY / 2 * decay
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses += loss.detach() * batch.shape[1] / size
        stalled = torch.where(losses > lowest - TOLERANCE, stalled + 1, 0)
        lowest = torch.minimum(lowest, losses)
        stopping = running & (stalled > PATIENCE)
        with torch.no_grad():
            for kept, now in zip(stopped.layers, network.layers, strict=True):
                kept[stopping] = now[stopping]
        running &= ~stopping
        if not running.any():
            return stopped
    raise RuntimeError(f"A classifier did not converge in {MAX_NUM_EPOCHS:,} epochs.")
