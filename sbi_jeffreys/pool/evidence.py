r"""What is subtracted from an unnormalised log-ratio so that its Z is about one.

.. math:: c(x) = a^T s(x) + b^T s(x)^2 + c_0

is fitted to $\log Z(x)$, of which draws of a proposal give estimates. It changes no
posterior, but gives $\log Z$ its meaning: whether models agree, and the evidence.
"""

from math import log

import torch
from torch import Tensor, nn
from typing_extensions import Self


class Evidence(nn.Module):
    """c(x), quadratic in each summary of x; zero before it is fitted."""

    def __init__(self, num_summaries: int) -> None:
        """
        Args:
            num_summaries: Entries of s.
        """
        super().__init__()
        self.linear = nn.Linear(2 * num_summaries, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def fit(self, summaries: Tensor, log_weights: Tensor) -> Self:
        """Fit c by least squares, in place.

        Args:
            summaries: s, shape `(N, num_summaries)`.
            log_weights: Importance weights in nats, shape `(K, N)`, of which the mean
                over K draws estimates Z.
        """
        log_z = log_weights.logsumexp(0) - log(len(log_weights))
        terms = _with_squares(summaries)
        design = torch.cat([terms, torch.ones_like(terms[:, :1])], 1).cpu()
        fit = torch.linalg.lstsq(design, log_z.cpu().unsqueeze(1), driver="gelsd")
        self.linear.weight.copy_(fit.solution[:-1].T)
        self.linear.bias.copy_(fit.solution[-1])
        return self

    def forward(self, summaries: Tensor) -> Tensor:
        """Return c in nats, shape `(batch,)`, of summaries `(batch, num_summaries)`."""
        return self.linear(_with_squares(summaries)).squeeze(-1)


def _with_squares(summaries: Tensor) -> Tensor:
    return torch.cat([summaries, summaries.square()], -1)
