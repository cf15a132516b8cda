r"""The M networks of the synthetic likelihood, side by side."""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from sbi_jeffreys.pool.synthetic_likelihood.errors import ErrorModel, StudentMixture

HIDDEN_FEATURES, NUM_BLOCKS = 64, 2
"""Width of the networks, and the number of residual blocks, of one layer each."""


class LikelihoodEnsemble(nn.Module):
    r"""The M densities $p_m(s | \theta)$ of M networks, evaluated together."""

    entries: Tensor

    def __init__(
        self, num: int, input_features: int, output_features: int, error_model: ErrorModel
    ) -> None:
        r"""
        Args:
            num: M.
            input_features: Number of parameters.
            output_features: Entries d of s.
            error_model: The kind of errors of s about its location.
        """
        super().__init__()
        self.num = num
        self.output_features = dim = output_features
        self.error_model = error_model
        below = torch.tril_indices(dim, dim, -1)
        if error_model.bandwidth is not None:
            below = below[:, below[0] - below[1] <= error_model.bandwidth]
        num_below = below.shape[1]
        self.linear = EnsembleLinear(num, input_features, dim)
        self.first = EnsembleLinear(num, input_features, HIDDEN_FEATURES)
        self.blocks = nn.ModuleList(
            EnsembleLinear(num, HIDDEN_FEATURES, HIDDEN_FEATURES)
            for _ in range(NUM_BLOCKS)
        )
        self.last = EnsembleLinear(num, HIDDEN_FEATURES, 2 * dim + num_below, gain=0.1)
        self.errors = StudentMixture(num, dim, error_model)
        self.is_diagonal = error_model.bandwidth == 0
        if not self.is_diagonal:
            # Position of each entry of U in the list of its diagonal entries, those below
            # the diagonal that are learned, and a zero.
            entries = torch.full((dim, dim), dim + num_below)
            entries = entries.diagonal_scatter(torch.arange(dim))
            entries[below[0], below[1]] = dim + torch.arange(num_below)
            self.register_buffer("entries", entries.flatten())

    def forward(self, theta: Tensor, s: Tensor) -> Tensor:
        r"""Return $\log p_m(s | \theta)$ in nats, shape `(M, N)`.

        Args:
            theta: Standardised parameters, shape `(M, N, D)`.
            s: Whitened summaries, shape `(M, N, d)`.
        """
        mean, log_diagonal, root = self._location_and_root(theta)
        z = s - mean
        if root is None:
            z = log_diagonal.exp() * z
        else:
            z = (root @ z.unsqueeze(-1)).squeeze(-1)
        return self.errors(z) + log_diagonal.sum(-1)

    @torch.no_grad()
    def start_at(self, regression: nn.Linear) -> None:
        r"""Start all networks from a linear regression of s on $\theta$."""
        self.linear.weight.copy_(regression.weight.T)
        self.linear.bias.copy_(regression.bias)

    @torch.no_grad()
    def draw(self, theta: Tensor) -> Tensor:
        r"""Draw s given each $\theta$, from one of the M networks at random.

        Args:
            theta: Standardised parameters, shape `(N, D)`.

        Returns:
            Whitened summaries, shape `(N, d)`.
        """
        rows = torch.arange(len(theta), device=theta.device)
        members = torch.randint(self.num, (len(theta),), device=theta.device)
        mean, log_diagonal, root = self._location_and_root(theta.expand(self.num, -1, -1))
        mean, z = mean[members, rows], self.errors.draw(members)
        if root is None:
            return mean + z / log_diagonal[members, rows].exp()
        solved = torch.linalg.solve_triangular(
            root[members, rows], z.unsqueeze(-1), upper=False
        )
        return mean + solved.squeeze(-1)

    def _location_and_root(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        r"""Return $\mu$ and the log diagonal of U, `(M, N, d)`, and U if it has more."""
        hidden = self.first(theta)
        for block in self.blocks:
            hidden = hidden + block(
                dropout(silu(hidden), self.error_model.dropout, self.training)
            )
        dim = self.output_features
        mean, log_diagonal, below = self.last(silu(hidden)).tensor_split(
            (dim, 2 * dim), -1
        )
        mean = mean + self.linear(theta)
        if self.is_diagonal:
            return mean, log_diagonal, None
        parts = torch.cat(
            [log_diagonal.exp(), below, torch.zeros_like(mean[..., :1])], -1
        )
        root = parts.index_select(-1, self.entries).unflatten(-1, (dim, dim))
        return mean, log_diagonal, root


class EnsembleLinear(nn.Module):
    """A linear layer for each of M networks."""

    def __init__(
        self, num: int, input_features: int, output_features: int, gain: float = 1.0
    ) -> None:
        """
        Args:
            num: M.
            input_features: Entries of its input.
            output_features: Entries of its output.
            gain: Standard deviation of an output before training, for inputs of unit
                variance.
        """
        super().__init__()
        std = gain / sqrt(input_features)
        self.weight = nn.Parameter(
            std * torch.randn(num, input_features, output_features)
        )
        self.bias = nn.Parameter(torch.zeros(num, 1, output_features))

    def forward(self, input: Tensor) -> Tensor:
        """Return outputs `(M, N, output_features)` of `(M, N, input_features)`."""
        return torch.baddbmm(self.bias, input, self.weight)
