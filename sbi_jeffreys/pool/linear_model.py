r"""A simulator that is linear in its parameters, with errors of any distribution.

The model is fitted in closed form and by expectation maximisation, without training.

.. math:: r(\theta, x) = \log p(s(x) | \theta) - \log p(s(x)), \qquad
    s(x) = M \theta + m + e, \qquad e \sim \sum_k \pi_k N(\mu_k, S_k)

1. The summaries s(x) are a regression of the parameters on features of x, with the ridge
   penalty that has the best leave-one-out errors (semi-automatic summaries; Fearnhead &
   Prangle 2012, arXiv:1004.1112).
2. M and m are fitted by least squares to leave-one-out predictions of s, because these
   have not seen the parameters that they predict.
3. Mixtures of Gaussians are fitted to the errors e and to the predictions, which gives
   the synthetic likelihood $p(s | \theta)$ (Wood 2010, Price et al. 2018) and $p(s)$. The
   number of components is the one with the smallest BIC. As the log-ratio is normalised
   by p(s), Z is about 1.

Many simulators are sparse: few entries of x depend on each parameter. The lasso, with the
number of coefficients that has the smallest BIC (Efron et al. 2004, Zou et al. 2007), is
therefore compared with the ridge regression. If its held-out predictions are better, it
gives both s and M, and independent errors e are tried, too.
"""

from typing import Self

from torch import Tensor, nn

from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.mixture_density import MixtureDensity
from sbi_jeffreys.pool.regression import (
    NUM_FOLDS,
    lasso,
    lasso_with_held_out,
    least_squares,
    log_generalised_variance,
    ridge,
)

MAX_LASSO_FEATURES, MIN_PAIRS_PER_FEATURE = 200, 2
"""The lasso is tried with at most this number of features, and with at least this number
of pairs for each."""


class LinearModel(nn.Module):
    r"""The log-ratio $\log p(s(x) | \theta) - \log p(s(x))$."""

    def __init__(
        self,
        summaries: nn.Linear,
        slopes: nn.Linear,
        errors: MixtureDensity,
        marginal: MixtureDensity,
    ) -> None:
        r"""
        Args:
            summaries: Maps features of x to s.
            slopes: Maps $\theta$ to the mean of s.
            errors: Density of s about its mean.
            marginal: Density of s over all $\theta$.
        """
        super().__init__()
        self.summaries, self.slopes = summaries, slopes
        self.errors, self.marginal = errors, marginal

    @classmethod
    def fit(
        cls, candidates: Candidates, earlier: Self | None = None, effort: float = 1.0
    ) -> Self:
        """Fit the model on the CPU in double precision.

        Args:
            candidates: The pairs. Draws of the flow are not used.
            earlier: Not used.
            effort: Not used.

        Returns:
            The model, on the device and in the precision of the pairs.
        """
        t, features = (
            values.detach().cpu().double()
            for values in (candidates.theta[0], candidates.features)
        )
        summaries, predictions = ridge(t, features)
        is_sparse = False
        most = min(MAX_LASSO_FEATURES, len(t) // MIN_PAIRS_PER_FEATURE)
        if max(features.shape[1], NUM_FOLDS) <= most:
            sparse, held_out = lasso_with_held_out(t, features)
            is_sparse = log_generalised_variance(t - held_out) < (
                log_generalised_variance(t - predictions)
            )
            if is_sparse:
                summaries, predictions = sparse, held_out
        slopes = (lasso if is_sparse else least_squares)(predictions, t)
        errors = MixtureDensity.fit(predictions - slopes(t), try_independent=is_sparse)
        model = cls(summaries, slopes, errors, MixtureDensity.fit(predictions))
        return model.to(candidates.theta)

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Features of x, shape `(batch, features)`.
        """
        s = self.summaries(condition.flatten(1))
        return self.errors(s - self.slopes(input)) - self.marginal(s)
