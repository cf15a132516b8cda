r"""Networks that learn the log-ratio $r(\theta, x) = \log p(x | \theta) / p(x)$."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sbi_jeffreys.models.networks import ContextNet, zero_init


class LogRatioNet(nn.Module):
    r"""The default log-ratio network, zero at initialisation.

    .. math:: r(\theta, x) = \theta^T (A x + a) + \theta^T B \theta + m(\theta, x)

    with a residual MLP m. If the likelihood is an exponential family with statistics x,
    the first two terms suffice up to a function of $\theta$.
    """

    def __init__(
        self,
        input_features: int,
        condition_features: int,
        hidden_features: int = 64,
        num_blocks: int = 2,
    ) -> None:
        """
        Args:
            input_features: Number of parameters.
            condition_features: Number of (embedded) features of x.
            hidden_features: Width of the MLP.
            num_blocks: Number of residual blocks. Each has two layers.
        """
        super().__init__()
        self.linear = zero_init(nn.Linear(condition_features, input_features))
        self.quadratic = zero_init(nn.Linear(input_features, input_features, bias=False))
        self.net = ContextNet(
            input_features, condition_features, hidden_features, num_blocks, silu
        )
        self.head = zero_init(nn.Linear(hidden_features, 1))

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return r in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, input_features)`.
            condition: Embedded conditions, shape `(batch, condition_features)`.
        """
        natural = self.linear(condition) + self.quadratic(input)
        rows = input.flatten(0, 1)
        rest = self.head(self.net(rows, self.net.from_context(condition)))
        return (input * natural).sum(-1) + rest.reshape(input.shape[:-1])


class LogRatioEnsemble(nn.ModuleList):
    """Log-ratio networks without shared weights. The energy uses their average."""

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return each member's log-ratios in nats, shape `(member, sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Embedded conditions, shape `(batch, features)`.
        """
        return torch.stack([net(input, condition) for net in self])
