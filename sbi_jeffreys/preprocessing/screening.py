r"""Which entries of x show a dependence on θ: what networks should look at first.

With few simulations a network memorises them by whatever tells them apart, noise too. An
entry that has nothing to do with θ is better kept out of its sight. Ranks of θ's entries
and of x's, standardised, are $t_d$ and $u_i$, with $u_0 = 1$. For every
$p \in \{t_d, t_d^2 - 1\}$ and every pair i ≤ j the score

.. math:: S = \Big(\sum_n p_n u_{ni} u_{nj}\Big)^2 \Big/ \sum_n (p_n u_{ni} u_{nj})^2

is about $\chi^2_1$ if $u_i u_j$ is independent of $p$. It finds what changes a mean
(j = 0), a spread (i = j) or a correlation. Entries with a score above
$2 \log(\text{number of scores})$, about the largest of as many by chance (Foster & George
1994), are related to θ. Then t gives way to its residual from a linear regression on
these, by which an entry shows that only removes the noise of another, until none is new
(iterated sure independence screening, Fan & Lv 2008). At last the entries left over are
looked at together: many may tell a little each.
"""

from math import log

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

UNRELATED_SCALE = 0.01
"""What entries without a visible dependence are multiplied by, rather than left out: a
network can still learn to use them, where training is long and simulations are many."""

NUM_PERMUTATIONS = 99
"""Shuffles of θ, all of which have to show less dependence on the entries left over."""

MAX_EXPLAINED = 0.1
"""Share of a variance that an entry may explain and be left over, or too few simulations
are there to look at them."""

MAX_SIMULATIONS = 10_000
"""How many simulations are looked at."""

MAX_WORK = 10**9
"""Simulations times squared entries of x, above which all entries count as related."""


class Screening(nn.Module):
    """Flattens standardised x, and scales down its entries that are not related to θ."""

    scale: Tensor

    def __init__(self, related: Tensor) -> None:
        """
        Args:
            related: Whether each entry of x is, see `related_to`, shape `(entries,)`.
        """
        super().__init__()
        scale = torch.where(related, 1.0, UNRELATED_SCALE)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape `(batch, entries)` for x of shape `(batch, ...)`."""
        return x.flatten(1) * self.scale


def related_to(theta: Tensor, x: Tensor) -> Tensor:
    """Return whether each entry of x shows a dependence on θ, shape `(entries,)`.

    All of them are returned as related where it is not safe to tell: if none shows any;
    if those left over show some together (by chance with a probability of 0.01); if there
    are so few simulations that one left over might still explain a tenth of a variance
    (about 200 for 100 entries); or if x has too many entries to look at (1,000 with 1,000
    simulations, 300 with 10,000 or more).

    Never seen is a dependence on three or more entries together where neither the mean or
    spread of one nor the correlation of two depends on θ.

    Args:
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, ...)`.
    """
    step = -(-len(x) // MAX_SIMULATIONS)
    theta, rows = theta[::step].flatten(1), x[::step].flatten(1)
    num, entries = rows.shape
    everything = torch.ones(entries, dtype=torch.bool, device=x.device)
    threshold = 2 * log(theta.shape[1] * (entries + 1) * (entries + 2))
    if num * entries**2 > MAX_WORK or threshold > MAX_EXPLAINED * num:
        return everything
    t, u = _ranks(theta), _ranks(rows)
    related = torch.zeros(entries, dtype=torch.bool)
    p = _with_squares(t)
    while True:
        fresh = (_best_scores(p, u) > threshold) & ~related
        related = related | fresh
        if not fresh.any() or related.sum() > num // 2:
            break
        predictors = u[:, related]
        explained = predictors @ torch.linalg.lstsq(predictors, t).solution
        p = _with_squares(t - explained)
    if not related.any() or _depend(_with_squares(t), u[:, ~related]):
        return everything
    return related.to(x.device)


def _best_scores(p: Tensor, u: Tensor) -> Tensor:
    """Return the highest score of each entry of x, alone or with another."""
    factors = torch.cat([torch.ones_like(u[:, :1]), u], 1)
    best = torch.zeros(u.shape[1], dtype=u.dtype)
    for column in p.T.unsqueeze(-1):
        sums = (column * factors).T @ factors
        squares = (column * factors).square().T @ factors.square()
        scores = sums.square() / squares.clamp(min=torch.finfo(u.dtype).tiny)
        best = torch.maximum(best, scores[1:].amax(1))
    return best


def _depend(p: Tensor, u: Tensor) -> bool:
    """Return whether p correlates with u and its squares more than after any shuffle."""
    generator = torch.Generator().manual_seed(0)
    parts = _with_squares(u)
    shuffles = [
        p[torch.randperm(len(p), generator=generator)] for _ in range(NUM_PERMUTATIONS)
    ]
    own, *others = [float((q.T @ parts).pow(4).sum()) for q in (p, *shuffles)]
    return own > max(others)


def _with_squares(values: Tensor) -> Tensor:
    """Return standardised columns and their standardised squares."""
    values = _standardized(values)
    return _standardized(torch.cat([values, values.square()], 1))


def _ranks(values: Tensor) -> Tensor:
    """Return standardised ranks of each column, ties averaged, on the CPU."""
    ranks = rankdata(values.detach().cpu().numpy(), axis=0)
    return _standardized(torch.as_tensor(ranks, dtype=torch.float64))


def _standardized(values: Tensor) -> Tensor:
    """Centre each column and divide it by its standard deviation; zero if constant."""
    centred = values - values.mean(0)
    scale = centred.square().mean(0).sqrt()
    return torch.where(scale > 1e-9 * len(values), centred / scale, 0.0)
