r"""The density e of errors, and what keeps networks from memorising simulations.

.. math:: e(z) = \sum_c \pi_c \, |L_c| \; t_\nu\big(L_c (z - b_c)\big)

with t the standard multivariate density of Student. Its tails are heavier than a
Gaussian's, and tolerate a location that is somewhat wrong. There is one component, or,
where s has few entries, a mixture.
"""

from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Chi2

MAX_MIXTURE_ENTRIES = 5
"""Largest number of entries of s with which a mixture is tried."""


MAX_CORRELATED_ENTRIES, MAX_BANDED_ENTRIES = 20, 60
"""Largest numbers of entries of s with which all of U below its diagonal is learned, and
a band."""


class ErrorModel(NamedTuple):
    """One kind of errors, and the regularisation of the networks that goes with it.

    Attributes:
        num_components: Components of the mixture.
        bandwidth: Entries of U to the left of its diagonal, in each row, that are
            learned; None for all. With 0 there are d functions to learn, and with None
            d (d + 1) / 2. In a band, an error depends on the few before it.
        is_independent: Whether entries of z are independent, each with degrees of freedom
            of its own. Otherwise they share the scale that Student's distribution
            leaves open.
        dropout: Fraction of activations dropped in each block while training.
        weight_decay: Weight decay of the networks' layers. In each step, weights shrink
            by this times the learning rate, divided by the number of simulations.
        learning_rate: Largest learning rate of AdamW.
    """

    num_components: int = 1
    bandwidth: int | None = None
    is_independent: bool = False
    dropout: float = 0.2
    weight_decay: float = 1000.0
    learning_rate: float = 0.012


CORRELATED = ErrorModel()

MIXTURE = ErrorModel(num_components=16, dropout=0.0, weight_decay=100.0)
"""Errors that lie close to a curve locate it precisely, so this kind needs less
regularisation."""

BANDED = ErrorModel(bandwidth=3)
"""Entries in the order of time, as of a path."""

UNCORRELATED = ErrorModel(bandwidth=0)
INDEPENDENT = UNCORRELATED._replace(is_independent=True)
"""A shared scale tolerates a location that is wrong in all entries. But it leaves a scale
of the errors that depends on the parameters uncertain, however many entries there are."""

SMALL = ErrorModel(bandwidth=0, dropout=0.03, weight_decay=10.0, learning_rate=0.02)
SMALL_INDEPENDENT = SMALL._replace(is_independent=True)
"""Small errors locate the curve precisely, too. The networks start far from locations
that precise, and learn faster."""

DIAGONAL = [UNCORRELATED, INDEPENDENT, SMALL, SMALL_INDEPENDENT]


def error_models_for(num_entries: int) -> list[ErrorModel]:
    """Return the kinds to try for summaries with this number of entries.

    The one that fits held-out folds best is kept.
    """
    if num_entries == 1:  # the others are the same as one of these
        return [CORRELATED, MIXTURE, SMALL]
    if num_entries <= MAX_MIXTURE_ENTRIES:
        return [CORRELATED, MIXTURE, *DIAGONAL]
    if num_entries <= MAX_CORRELATED_ENTRIES:
        return [CORRELATED, *DIAGONAL]
    return [BANDED, *DIAGONAL] if num_entries <= MAX_BANDED_ENTRIES else DIAGONAL


class StudentMixture(nn.Module):
    r"""$\log e_m(z)$ for each of M networks."""

    INITIAL_SPREAD = 0.7
    """Standard deviation of the centers of a mixture's components, and of each component,
    at the start."""

    def __init__(self, num: int, features: int, error_model: ErrorModel) -> None:
        """
        Args:
            num: M.
            features: Entries d of z.
            error_model: The kind of errors. Of a single component, which is a standard t
                density, only the degrees of freedom are fitted.
        """
        super().__init__()
        spread, num_components = self.INITIAL_SPREAD, error_model.num_components
        self.features = features
        self.is_independent = error_model.is_independent
        shape = (num, 1, features) if self.is_independent else (num, 1)
        self.log_freedom = nn.Parameter(torch.full(shape, 2.0))
        self.components: nn.ParameterDict | None = None
        if num_components > 1:
            self.components = nn.ParameterDict(
                {
                    "logits": torch.zeros(num, 1, num_components),
                    "centers": spread * torch.randn(num, 1, num_components, features),
                    "roots": torch.zeros(num, num_components, features, features),
                    "log_diagonals": torch.full(
                        (num, num_components, features), log(1 / spread)
                    ),
                }
            )

    def forward(self, z: Tensor) -> Tensor:
        """Return log densities in nats, shape `(M, N)`, of errors `(M, N, d)`."""
        if self.is_independent:
            return self._student(z.unsqueeze(-1), self.log_freedom).sum(-1)
        if self.components is None:
            return self._student(z, self.log_freedom)
        log_shares = self.components["logits"].log_softmax(-1)
        z = z.unsqueeze(2) - self.components["centers"]
        z = (self._roots().unsqueeze(1) @ z.unsqueeze(-1)).squeeze(-1)
        log_scales = self.components["log_diagonals"].sum(-1).unsqueeze(1)
        log_t = self._student(z, self.log_freedom.unsqueeze(-1))
        return (log_shares + log_scales + log_t).logsumexp(-1)

    def draw(self, members: Tensor) -> Tensor:
        """Draw an error of each of N networks.

        Args:
            members: Numbers of the networks, shape `(N,)`.

        Returns:
            Errors, shape `(N, d)`.
        """
        freedom = 1 + self.log_freedom[members].exp().flatten(1)
        noise = torch.randn(len(members), self.features).to(freedom)
        z = noise * (freedom / Chi2(freedom, validate_args=False).sample()).sqrt()
        if self.components is None:
            return z
        logits = self.components["logits"][members, 0]
        drawn = Categorical(logits=logits, validate_args=False).sample()
        root = self._roots()[members, drawn]
        solved = torch.linalg.solve_triangular(root, z.unsqueeze(-1), upper=False)
        return self.components["centers"][members, 0, drawn] + solved.squeeze(-1)

    def _roots(self) -> Tensor:
        """Return L of each component, shape `(M, components, d, d)`."""
        assert self.components is not None
        diagonals = self.components["log_diagonals"].exp().diag_embed()
        return self.components["roots"].tril(-1) + diagonals

    @staticmethod
    def _student(z: Tensor, log_freedom: Tensor) -> Tensor:
        dim, nu = z.shape[-1], 1 + log_freedom.exp()
        half = (nu + dim) / 2
        return (
            torch.lgamma(half)
            - torch.lgamma(nu / 2)
            - dim / 2 * (log(pi) + nu.log())
            - half * torch.log1p(z.square().sum(-1) / nu)
        )
