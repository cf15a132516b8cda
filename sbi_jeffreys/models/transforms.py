"""The layers of the default flow, and the `nflows` transform that runs them.

Rows and contexts have the shapes of `networks`. Each layer has three methods. `given`
computes all that does not depend on the rows. `forward` maps parameters towards noise.
`inverse` maps noise towards parameters. The last two take rows and the result of `given`,
and return rows and log determinants.
"""

from typing import Any, NamedTuple, Protocol, cast

import torch
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.nn.functional import silu

from sbi_jeffreys.models.networks import ContextNet, per_row, zero_init
from sbi_jeffreys.models.spline import rational_quadratic_spline

MAX_LOG_SCALE = 6.0
"""Bound on the log scales of the affine layer, for an x outside the training data."""


class Layer(Protocol):
    """A layer of the flow, as this module's docstring describes it."""

    def given(self, context: Tensor) -> Any:
        """Return all that does not depend on the rows.

        Args:
            context: Embedded conditions, shape `(B, C)`.
        """

    def forward(self, rows: Tensor, given: Any) -> tuple[Tensor, Tensor]:
        """Map parameters towards noise.

        Args:
            rows: Shape `(S·B, D)`.
            given: The result of `given` for B conditions.

        Returns:
            Rows of the same shape, and log determinants in nats, shape `(S·B,)`.
        """

    def inverse(self, rows: Tensor, given: Any) -> tuple[Tensor, Tensor]:
        """Map noise towards parameters. Shapes are those of `forward`."""


class LayersGivenContext(list[tuple[Layer, Any]]):
    """Layers, each with the result of its `given`."""


class Layers(Transform):
    """Layers in sequence. They take a context, or the result of `given`.

    Couplings act on halves of the parameters. Neighbours often belong together, so
    parameters are first put in the order 1, 3, ..., 0, 2, .... Each half then consists of
    every second one.
    """

    order: Tensor
    restore: Tensor

    def __init__(self, features: int, layers: list[nn.Module]) -> None:
        """
        Args:
            features: Number D of parameters.
            layers: Modules with the methods of `Layer`.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        numbers = torch.arange(features)
        self.register_buffer("order", torch.cat([numbers[1::2], numbers[::2]]))
        self.register_buffer("restore", self.order.argsort())

    def given(self, context: Tensor) -> LayersGivenContext:
        """Return all that does not depend on the rows, for use with many of them.

        Args:
            context: Embedded conditions, shape `(B, C)`.
        """
        layers = [cast(Layer, layer) for layer in self.layers]
        return LayersGivenContext((layer, layer.given(context)) for layer in layers)

    def forward(
        self, inputs: Tensor, context: Tensor | LayersGivenContext
    ) -> tuple[Tensor, Tensor]:
        """Map parameters to noise; return the rows and log determinants."""
        rows, log_dets = inputs.index_select(-1, self.order), []
        for layer, given in self._given(context):
            rows, log_det = layer.forward(rows, given)
            log_dets.append(log_det)
        return rows, _sum(log_dets)

    def inverse(
        self, inputs: Tensor, context: Tensor | LayersGivenContext
    ) -> tuple[Tensor, Tensor]:
        """Map noise to parameters; return the rows and log determinants."""
        rows, log_dets = inputs, []
        for layer, given in reversed(self._given(context)):
            rows, log_det = layer.inverse(rows, given)
            log_dets.append(log_det)
        return rows.index_select(-1, self.restore), _sum(log_dets)

    def _given(self, context: Tensor | LayersGivenContext) -> LayersGivenContext:
        return self.given(context) if isinstance(context, Tensor) else context


def _sum(log_dets: list[Tensor]) -> Tensor:
    total = log_dets[0]
    for log_det in log_dets[1:]:
        total = total + log_det
    return total


class SplineCoupling(nn.Module):
    """Splines on one half of the parameters, with knots that depend on the other half.

    The knots depend on the context, too (Durkan et al. 2019, arXiv:1906.04032). If there
    is only one parameter, they depend on the context alone. The layer is the identity at
    initialisation.
    """

    def __init__(
        self,
        features: int,
        moves_first_half: bool,
        context_features: int,
        hidden_features: int,
        num_blocks: int,
        num_bins: int,
        tail_bound: float,
    ) -> None:
        """
        Args:
            features: Number D of parameters.
            moves_first_half: Whether the splines act on the first half of them.
            context_features: Number C of features of a condition.
            hidden_features: Width of the network that gives the knots.
            num_blocks: Its number of residual blocks.
            num_bins: Number of bins of each spline.
            tail_bound: Splines act on [-tail_bound, tail_bound].
        """
        super().__init__()
        self.num_bins, self.tail_bound = num_bins, tail_bound
        self.halves = (features // 2, features - features // 2)
        self.moves_first_half = moves_first_half and features > 1
        num_moved, num_kept = self.halves if self.moves_first_half else self.halves[::-1]
        self.net = ContextNet(
            num_kept, context_features, hidden_features, num_blocks, silu
        )
        self.to_knots = zero_init(
            nn.Linear(hidden_features, (3 * num_bins - 1) * num_moved)
        )

    def given(self, context: Tensor) -> Tensor:
        """Return the context's part of the first hidden layer, shape `(B, hidden)`."""
        return self.net.from_context(context)

    def forward(self, rows: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Map parameters towards noise."""
        return self._couple(rows, given, inverse=False)

    def inverse(self, rows: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise towards parameters."""
        return self._couple(rows, given, inverse=True)

    def _couple(
        self, rows: Tensor, given: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        first, second = rows.split(self.halves, -1)
        moved, kept = (first, second) if self.moves_first_half else (second, first)
        features = per_row(self.net(kept, given), rows)
        # Transposed, because the spline takes bins as the first axis.
        linear = self.to_knots
        knots = torch.addmm(linear.bias.unsqueeze(-1), linear.weight, features.T)
        sizes, slopes = knots.view(-1, *moved.T.shape).split(
            (2 * self.num_bins, self.num_bins - 1)
        )
        outputs, log_slopes = rational_quadratic_spline(
            moved.T.contiguous(),
            sizes.unflatten(0, (2, self.num_bins)),
            slopes,
            self.tail_bound,
            inverse,
        )
        both = (outputs.T, kept) if self.moves_first_half else (kept, outputs.T)
        return torch.cat(both, -1), log_slopes.sum(0)


class AffineGivenContext(NamedTuple):
    """Shift m and log scale s, `(B, D)`, and L below its diagonal, `(B, D, D)`."""

    shift: Tensor
    log_scale: Tensor
    below: Tensor


class ConditionalAffine(nn.Module):
    r"""$z = e^{-s(x)} \odot L(x) (u - m(x))$, with L unit lower triangular.

    It suffices for a Gaussian posterior whose mean, scales and correlations depend on x.
    Each of m, s and L is a linear function of the context plus a residual network. The
    layer is the identity at initialisation.
    """

    def __init__(
        self,
        features: int,
        context_features: int,
        hidden_features: int,
        num_blocks: int,
    ) -> None:
        """
        Args:
            features: Number D of parameters.
            context_features: Number C of features of a condition.
            hidden_features: Width of the residual network.
            num_blocks: Its number of residual blocks.
        """
        super().__init__()
        self.features = features
        outputs = (2 + features) * features
        self.net = ContextNet(0, context_features, hidden_features, num_blocks, silu)
        self.linear = zero_init(nn.Linear(context_features, outputs))
        self.residual = zero_init(nn.Linear(hidden_features, outputs))

    def given(self, context: Tensor) -> AffineGivenContext:
        """Return m, s and L for each context."""
        features = self.net(context, self.net.from_context(context))
        parameters = self.linear(context) + self.residual(features)
        shift, log_scale, rest = parameters.split(
            (self.features, self.features, self.features**2), -1
        )
        return AffineGivenContext(
            shift,
            MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE),
            rest.unflatten(-1, (self.features, self.features)).tril(-1),
        )

    def forward(self, rows: Tensor, given: AffineGivenContext) -> tuple[Tensor, Tensor]:
        """Map parameters towards noise."""
        centred = rows.view(-1, *given.shift.shape) - given.shift
        mixed = centred + torch.einsum("bij,sbj->sbi", given.below, centred)
        outputs = mixed * torch.exp(-given.log_scale)
        return outputs.reshape(rows.shape), per_row(-given.log_scale.sum(-1), rows)

    def inverse(self, rows: Tensor, given: AffineGivenContext) -> tuple[Tensor, Tensor]:
        """Map noise towards parameters."""
        mixed = rows.view(-1, *given.shift.shape) * given.log_scale.exp()
        centred = torch.linalg.solve_triangular(
            given.below, mixed.permute(1, 2, 0), upper=False, unitriangular=True
        ).permute(2, 0, 1)
        outputs = centred + given.shift
        return outputs.reshape(rows.shape), per_row(given.log_scale.sum(-1), rows)


class Mixing(nn.Module):
    r"""$z = L U u + b$ with learned triangular factors.

    L is unit lower triangular. U is upper triangular with the diagonal $e^{d}$. The layer
    is the identity at initialisation.
    """

    def __init__(self, features: int) -> None:
        """
        Args:
            features: Number D of parameters.
        """
        super().__init__()
        self.factors = nn.Parameter(torch.zeros(features, features))
        self.bias = nn.Parameter(torch.zeros(features))

    def given(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return L U, its inverse, and its log determinant."""
        eye = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        diagonal = self.factors.diagonal()
        lower = self.factors.tril(-1) + eye
        upper = self.factors.triu(1) + torch.diag(diagonal.exp())
        inverse = torch.linalg.solve_triangular(
            upper,
            torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True),
            upper=True,
        )
        return lower @ upper, inverse, diagonal.sum()

    def forward(
        self, rows: Tensor, given: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Map parameters towards noise."""
        matrix, _, log_det = given
        return torch.addmm(self.bias, rows, matrix.T), log_det.expand(len(rows))

    def inverse(
        self, rows: Tensor, given: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Map noise towards parameters."""
        _, inverse, log_det = given
        return (rows - self.bias) @ inverse.T, (-log_det).expand(len(rows))
