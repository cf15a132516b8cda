r"""The M networks of the synthetic likelihood, side by side, and their training.

Each network is fitted by maximum likelihood to the simulations except a fold of its own.
Training stops when no network fits its fold any better, and each keeps the weights that
fitted its fold best.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from sbi_jeffreys.pool.synthetic_likelihood.errors import ErrorModel, StudentMixture
from sbi_jeffreys.training.averaging import newest_share

HIDDEN_FEATURES, NUM_BLOCKS = 64, 2
"""Width of the networks, and the number of residual blocks, of one layer each."""

BATCH_SIZE = 200
"""Simulations in a batch, drawn with replacement."""

AVERAGING = 0.98
"""Share of the past in the moving average of the weights."""

STEPS_PER_CHECK, PATIENCE, MAX_STEPS = 5, 250, 5000
"""Steps between two evaluations of the folds; steps without a better fit of any network
after which training stops; and the largest number of steps."""


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
        num_below = 0 if error_model.is_diagonal else dim * (dim - 1) // 2
        self.linear = EnsembleLinear(num, input_features, dim)
        self.first = EnsembleLinear(num, input_features, HIDDEN_FEATURES)
        self.blocks = nn.ModuleList(
            EnsembleLinear(num, HIDDEN_FEATURES, HIDDEN_FEATURES)
            for _ in range(NUM_BLOCKS)
        )
        self.last = EnsembleLinear(num, HIDDEN_FEATURES, 2 * dim + num_below, gain=0.1)
        self.errors = StudentMixture(num, dim, error_model.num_components)
        if not error_model.is_diagonal:
            # Position of each entry of U in the list of its diagonal entries, those below
            # the diagonal, and a zero.
            entries = torch.full((dim, dim), dim + num_below)
            entries = entries.diagonal_scatter(torch.arange(dim))
            below = torch.tril_indices(dim, dim, -1)
            entries[below[0], below[1]] = dim + torch.arange(num_below)
            self.register_buffer("entries", entries.flatten())

    def forward(self, theta: Tensor, s: Tensor) -> Tensor:
        r"""Return $\log p_m(s | \theta)$ in nats, shape `(M, N)`.

        Args:
            theta: Standardised parameters, shape `(M, N, D)`.
            s: Whitened summaries, shape `(M, N, d)`.
        """
        hidden = self.first(theta)
        for block in self.blocks:
            hidden = hidden + block(
                dropout(silu(hidden), self.error_model.dropout, self.training)
            )
        dim = self.output_features
        mean, log_diagonal, below = self.last(silu(hidden)).tensor_split(
            (dim, 2 * dim), -1
        )
        z = s - mean - self.linear(theta)
        if self.error_model.is_diagonal:
            z = log_diagonal.exp() * z
        else:
            parts = torch.cat(
                [log_diagonal.exp(), below, torch.zeros_like(mean[..., :1])], -1
            )
            root = parts.index_select(-1, self.entries).unflatten(-1, (dim, dim))
            z = (root @ z.unsqueeze(-1)).squeeze(-1)
        return self.errors(z) + log_diagonal.sum(-1)

    def fit(self, theta: Tensor, s: Tensor, regression: nn.Linear) -> float:
        """Fit each network to the pairs except its fold, and keep the best weights.

        Args:
            theta: Standardised parameters, shape `(N, D)`.
            s: Whitened summaries, shape `(N, d)`.
            regression: Linear regression of s on theta, from which all networks start.

        Returns:
            The loss on the held-out folds in nats, averaged over networks.
        """
        with torch.no_grad():
            self.linear.weight.copy_(regression.weight.T)
            self.linear.bias.copy_(regression.bias)
        size = len(theta) // self.num
        order = torch.randperm(len(theta), device=theta.device)
        rolled = torch.stack([order.roll(m * size) for m in range(self.num)])
        fold, rest = rolled[:, :size], rolled[:, size:]

        layers: list[Any] = [self.first, *self.blocks, self.last]
        shrunk = [layer.weight for layer in layers]
        others = [*(layer.bias for layer in layers), *self.linear.parameters()]
        others += self.errors.parameters()
        weight_decay = self.error_model.weight_decay / len(theta)
        optimizer = torch.optim.AdamW(
            shrunk, lr=self.error_model.learning_rate, weight_decay=weight_decay
        )
        optimizer.add_param_group({"params": others, "weight_decay": 0.0})
        latest = [p.detach() for p in self.parameters()]
        average = [p.clone() for p in latest]
        best = [p.clone() for p in latest]
        best_loss = theta.new_full((self.num,), torch.inf)
        last_gain = 0
        for step in range(1, MAX_STEPS + 1):
            rows = rest.gather(1, torch.randint_like(rest[:, :BATCH_SIZE], rest.shape[1]))
            loss = -self(theta[rows], s[rows]).mean(1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            torch._foreach_lerp_(average, latest, newest_share(step - 1, AVERAGING))
            if step % STEPS_PER_CHECK == 0:
                losses = self._losses(average, theta[fold], s[fold])
                better = losses < best_loss
                best_loss = torch.where(better, losses, best_loss)
                for kept, values in zip(best, average, strict=True):
                    kept[better] = values[better]
                last_gain = step if bool(better.any()) else last_gain
                if step - last_gain >= PATIENCE:
                    break
        for parameter, values in zip(latest, best, strict=True):
            parameter.copy_(values)
        self.zero_grad()
        return float(best_loss.mean())

    @torch.no_grad()
    def _losses(self, weights: list[Tensor], theta: Tensor, s: Tensor) -> Tensor:
        """Return the mean loss of each network with these weights, shape `(M,)`."""
        named = dict(zip(dict(self.named_parameters()), weights, strict=True))
        self.eval()
        log_likelihood = torch.func.functional_call(self, named, (theta, s))
        self.train()
        return -log_likelihood.mean(1)


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
