"""The layers of the default flow, as `nflows` transforms.

Points come as rows and contexts as in `networks`: what depends on the context alone is
computed once for all draws.
"""

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from sbi_jeffreys.networks import ContextNet, per_row, zero_init
from sbi_jeffreys.spline import rational_quadratic_spline

MAX_LOG_SCALE = 6.0
"""Bound on the log scales of the affine layer, for an x beyond all training data."""


class SplineCoupling(Transform):
    """Splines on some parameters, with knots that depend on the others and the context.

    Durkan et al. 2019, arXiv:1906.04032. Where every parameter is moved, knots depend
    on the context alone. The identity at initialisation.
    """

    moved: Tensor
    kept: Tensor
    order: Tensor

    def __init__(
        self,
        moved: Tensor,
        context_features: int,
        hidden_features: int,
        num_blocks: int,
        num_bins: int,
        tail_bound: float,
    ) -> None:
        """
        Args:
            moved: Which of the D parameters are transformed, bool, shape `(D,)`.
        """
        super().__init__()
        self.num_bins, self.tail_bound = num_bins, tail_bound
        self.num_moved = int(moved.sum())
        self.register_buffer("moved", moved.nonzero().squeeze(-1))
        self.register_buffer("kept", (~moved).nonzero().squeeze(-1))
        self.register_buffer("order", torch.cat([self.kept, self.moved]).argsort())
        self.net = ContextNet(
            len(self.kept), context_features, hidden_features, num_blocks
        )
        self.to_knots = zero_init(
            nn.Linear(hidden_features, (3 * num_bins - 1) * self.num_moved)
        )

    def forward(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map parameters towards noise; return the rows and log determinants."""
        return self._couple(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise towards parameters; return the rows and log determinants."""
        return self._couple(inputs, context, inverse=True)

    def _couple(
        self, inputs: Tensor, context: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        kept = inputs.index_select(-1, self.kept)
        moved = inputs.index_select(-1, self.moved)
        features = per_row(self.net(kept, context), inputs)
        # Transposed, for the spline wants bins first.
        linear = self.to_knots
        knots = torch.addmm(linear.bias.unsqueeze(-1), linear.weight, features.T)
        bins = self.num_bins
        widths, heights, slopes = knots.view(3 * bins - 1, self.num_moved, -1).split(
            (bins, bins, bins - 1)
        )
        moved, log_slope = rational_quadratic_spline(
            moved.T, widths, heights, slopes, self.tail_bound, inverse
        )
        outputs = torch.cat([kept, moved.T], -1).index_select(-1, self.order)
        return outputs, log_slope.sum(0)


class ConditionalAffine(Transform):
    r"""$z = e^{-s(x)} \odot L(x) (u - m(x))$, with L unit lower triangular.

    A posterior that is Gaussian, with mean, scales and correlations that depend on x,
    needs no other layer. Each of m, s and L is a linear function of the context plus a
    residual network. The identity at initialisation.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        features: int,
        context_features: int,
        hidden_features: int,
        num_blocks: int,
    ) -> None:
        super().__init__()
        self.features = features
        rows, columns = torch.tril_indices(features, features, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        outputs = 2 * features + len(rows)
        self.net = ContextNet(0, context_features, hidden_features, num_blocks)
        self.linear = zero_init(nn.Linear(context_features, outputs))
        self.residual = zero_init(nn.Linear(hidden_features, outputs))

    def forward(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map parameters towards noise; return the rows and log determinants."""
        shift, log_scale, mixing = self._shift_scale_mixing(context)
        centred = inputs.view(-1, *shift.shape) - shift
        mixed = torch.einsum("bij,sbj->sbi", mixing, centred)
        outputs = mixed * torch.exp(-log_scale)
        return outputs.reshape(inputs.shape), per_row(-log_scale.sum(-1), inputs)

    def inverse(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise towards parameters; return the rows and log determinants."""
        shift, log_scale, mixing = self._shift_scale_mixing(context)
        mixed = inputs.view(-1, *shift.shape) * log_scale.exp()
        centred = torch.linalg.solve_triangular(
            mixing, mixed.permute(1, 2, 0), upper=False, unitriangular=True
        ).permute(2, 0, 1)
        return (centred + shift).reshape(inputs.shape), per_row(log_scale.sum(-1), inputs)

    def _shift_scale_mixing(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nothing = context.new_empty(len(context), 0)
        parameters = self.linear(context) + self.residual(self.net(nothing, context))
        shift, log_scale, below = parameters.split(
            (self.features, self.features, len(self.rows)), -1
        )
        log_scale = MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)
        eye = torch.eye(self.features, dtype=below.dtype, device=below.device)
        mixing = eye.repeat(len(below), 1, 1)
        mixing[:, self.rows, self.columns] = below
        return shift, log_scale, mixing


class Mixing(Transform):
    r"""$z = L U u + b$ with learnt triangular factors; the identity at initialisation.

    L is unit lower triangular and U upper triangular with the diagonal $e^{d}$.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.zeros(features, features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map parameters towards noise; return the rows and log determinants."""
        lower, upper = self._lower_upper()
        outputs = inputs @ (lower @ upper).T + self.bias
        return outputs, self.factors.diagonal().sum().expand(len(inputs))

    def inverse(
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map noise towards parameters; return the rows and log determinants."""
        lower, upper = self._lower_upper()
        outputs = torch.linalg.solve_triangular(
            lower, (inputs - self.bias).T, upper=False, unitriangular=True
        )
        outputs = torch.linalg.solve_triangular(upper, outputs, upper=True).T
        return outputs, -self.factors.diagonal().sum().expand(len(inputs))

    def _lower_upper(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        diagonal = torch.diag(self.factors.diagonal().exp())
        return self.factors.tril(-1) + eye, self.factors.triu(1) + diagonal
