r"""The log evidence of an unnormalised log-ratio, as a function of x.

A log-ratio $r'(\theta, x)$ that is known up to a function of x has the log evidence

.. math:: \log E_{p(\theta)}[e^{r'(\theta, x)}] \approx
    c(x) = a^T s(x) + b^T s(x)^2 + c_0

The quadratic c is fitted to estimates of the left-hand side from importance weights, and
$r = r' - c$ is the log-ratio that is pooled. Its Z is about 1. Subtracting c changes no
posterior, but makes log Z comparable between models and between observations.
"""

from typing import Self

import torch
from torch import Tensor, nn

from sbi_jeffreys.pool.regression import least_squares
from sbi_jeffreys.sampling.importance_weights import log_mean_exp


class Evidence(nn.Module):
    """c(x), quadratic in each summary of x. It is zero until it is fitted."""

    def __init__(self, num_summaries: int) -> None:
        """
        Args:
            num_summaries: Entries of s.
        """
        super().__init__()
        self.linear = nn.Linear(2 * num_summaries, 1)
        self.forget()

    def forget(self) -> None:
        """Set c to zero."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def fit(self, summaries: Tensor, log_weights: Tensor) -> Self:
        """Fit c by least squares, in place.

        Args:
            summaries: s, shape `(N, num_summaries)`.
            log_weights: Log importance weights in nats, shape `(K, N)`. The mean weight
                over K draws estimates the evidence.
        """
        log_evidence = log_mean_exp(log_weights)
        known = log_evidence.isfinite()  # elsewhere all draws have a weight of zero
        if not bool(known.any()):
            return self
        terms = _with_squares(summaries[known])
        fit = least_squares(log_evidence[known].unsqueeze(1), terms)
        self.linear.load_state_dict(fit.state_dict())
        return self

    def forward(self, summaries: Tensor) -> Tensor:
        """Return c in nats, shape `(batch,)`, of summaries `(batch, num_summaries)`."""
        return self.linear(_with_squares(summaries)).squeeze(-1)


def _with_squares(summaries: Tensor) -> Tensor:
    return torch.cat([summaries, summaries.square()], -1)
