"""The models of the simulator that are pooled with the networks.

To add a model, write its class in a module of this folder. Import it here, and enter it
in `POOL_MODELS`.
"""

from typing import Any, Protocol

from torch import nn

from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.exponential_family import ExponentialFamily
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.synthetic_likelihood import SyntheticLikelihood


class PoolModel(Protocol):
    r"""What a class in `POOL_MODELS` provides.

    Its `fit` returns a module that maps standardised parameters, shape `(sample, batch,
    D)`, and features of x, shape `(batch, features)`, to log-ratios
    $\log p(x | \theta) - \log p(x)$ in nats, shape `(sample, batch)`. They should be
    normalised, so that the mean of $e^r$ over the prior is about one for each x.
    """

    @classmethod
    def fit(cls, candidates: Candidates, earlier: Any = None) -> nn.Module:
        """Fit the model to simulations.

        Args:
            candidates: The simulations, and draws of the flow for each.
            earlier: The same model as fitted to fewer of the simulations, or None. A
                model may take over choices that are expensive to make again.

        Returns:
            The model, on the device and in the precision of the candidates.
        """
        ...


POOL_MODELS: dict[str, type[PoolModel]] = {
    "linear_model": LinearModel,
    "exponential_family": ExponentialFamily,
    "synthetic_likelihood": SyntheticLikelihood,
}
"""The models by the names that `JNPE.summary` gives their weights."""
