r"""Screening: which entries of x show a dependence on θ.

With few simulations a network memorises them, and it uses noise to tell them apart.
Entries that are unrelated to θ are therefore scaled down. Let $t_d$ and $u_i$ be the
standardised ranks of the entries of θ and of x, and let $u_0 = 1$. For every
$p \in \{t_d, t_d^2 - 1\}$ and every pair i ≤ j the score

.. math:: S = \Big(\sum_n p_n u_{ni} u_{nj}\Big)^2 \Big/ \sum_n (p_n u_{ni} u_{nj})^2

is about $\chi^2_1$ if $u_i u_j$ is independent of $p$. It detects that a mean (j = 0), a
variance (i = j) or a correlation depends on θ.

1. An entry is related to θ if one of its scores exceeds a threshold. By chance any score
   does so in at most one of a hundred data sets (Bonferroni's correction).
2. Then t is replaced by its residual from a linear regression on the related entries.
   This reveals entries that only remove the noise of another. The step is repeated until
   no new entry is found (iterated sure independence screening, Fan & Lv 2008).
3. The remaining entries are tested together, because each of many may depend on θ only a
   little.
"""

import torch
from scipy.stats import chi2, rankdata
from torch import Tensor, nn

from sbi_jeffreys.preprocessing.scaling import varies

UNRELATED_SCALE = 0.01
"""Factor for entries without a visible dependence. They are not left out: with many
simulations and long training a network can still learn to use them."""

FALSE_ALARMS = 0.01
"""Bound on the probability that any score of unrelated entries exceeds the threshold. It
is small, because a few entries of noise can cost much accuracy."""

NUM_PERMUTATIONS = 99
"""Shuffles of θ in the test of the remaining entries. The remaining entries count as
related if θ shows more dependence on them than any shuffle does."""

MAX_EXPLAINED = 0.125
"""Largest share of a variance that an unrelated entry may explain. If the threshold of
the scores corresponds to more, there are too few simulations to screen."""

MAX_SCREENED = 10_000
"""Largest number of simulations that are used."""

MAX_WORK = 10**9
"""Number of simulations times squared number of entries above which nothing is screened,
and all entries count as related."""


class Screening(nn.Module):
    """Flattens standardised x and scales down its entries that are not related to θ."""

    scale: Tensor

    def __init__(self, related: Tensor) -> None:
        """
        Args:
            related: Whether each entry of x is related to θ, shape `(entries,)`; see
                `related_to`.
        """
        super().__init__()
        scale = torch.where(related, 1.0, UNRELATED_SCALE)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape `(batch, entries)` for x of shape `(batch, ...)`."""
        return x.flatten(1) * self.scale


def related_to(theta: Tensor, x: Tensor) -> Tensor:
    """Return whether each entry of x shows a dependence on θ, shape `(entries,)`.

    All entries are returned as related in the cases where screening is not safe:

    - No entry shows a dependence.
    - The remaining entries show a dependence together. By chance this happens with a
      probability of 0.01.
    - There are so few simulations that a remaining entry might still explain an eighth of
      a variance: about 220 simulations for 100 entries.
    - x has too many entries: more than 1,000 with 1,000 simulations, or more than 300
      with 10,000 simulations or more.

    Screening misses a dependence that only three or more entries show together, while the
    mean and the variance of each and the correlation of each two do not depend on θ.

    Args:
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, ...)`.
    """
    step = -(-len(x) // MAX_SCREENED)
    theta, rows = theta[::step].flatten(1), x[::step].flatten(1)
    num, entries = rows.shape
    everything = torch.ones(entries, dtype=torch.bool, device=x.device)
    num_scores = theta.shape[1] * (entries + 1) * (entries + 2)
    threshold = float(chi2.isf(FALSE_ALARMS / num_scores, 1))
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
        p = _with_squares(t - explained, size=1.0)  # of t, which is standardised
    if not related.any() or _depend(_with_squares(t), u[:, ~related]):
        return everything
    return related.to(x.device)


def _best_scores(p: Tensor, u: Tensor) -> Tensor:
    """Return the highest score of each entry of x, alone or with another entry."""
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


def _with_squares(values: Tensor, size: float | None = None) -> Tensor:
    """Return standardised columns and their standardised squares; see `varies`."""
    values = _standardized(values, size)
    return _standardized(torch.cat([values, values.square()], 1))


def _ranks(values: Tensor) -> Tensor:
    """Return standardised ranks of each column on the CPU; ties get the average rank."""
    ranks = rankdata(values.detach().cpu().numpy(), axis=0)
    return _standardized(torch.as_tensor(ranks, dtype=torch.float64))


def _standardized(values: Tensor, size: float | None = None) -> Tensor:
    """Return columns of mean 0 and variance 1, or 0 where they do not vary."""
    centred = values - values.mean(0)
    scale = centred.square().mean(0).sqrt()
    return torch.where(varies(values, size), centred / scale, 0.0)
