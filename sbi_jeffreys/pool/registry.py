"""The models of the simulator that are pooled with the networks.

To add a model, write its class in a module of this folder. Import it here, and enter it
in `POOL_MODELS`.
"""

from collections.abc import Collection
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
    def fit(
        cls, candidates: Candidates, earlier: Any = None, effort: float = 1.0
    ) -> nn.Module:
        """Fit the model to simulations.

        A model with a method `simulate` (`emulation.Emulator`) is first fitted without
        draws. It then has a method `fit_evidence`, which is called with draws.

        Args:
            candidates: The simulations, and draws of the flow for each.
            earlier: The same model as fitted to fewer of the simulations, or None. A
                model may take over choices that are expensive to make again.
            effort: Factor of the number of steps or iterations of the fit.

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


def pool_models(wanted: bool | Collection[str]) -> tuple[str, ...]:
    """Return the names of the models that are wanted, in the order of `POOL_MODELS`.

    Args:
        wanted: All, none, or their names.

    Raises:
        TypeError: If `wanted` is neither a bool nor a collection.
        ValueError: If there is no model of a name.
    """
    if isinstance(wanted, bool):
        return tuple(POOL_MODELS) if wanted else ()
    if not isinstance(wanted, Collection):
        raise TypeError(
            f"Expected `pool` to be a bool or names of {', '.join(POOL_MODELS)}, got "
            f"{wanted!r}."
        )
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    if unknown := names - set(POOL_MODELS):
        raise ValueError(
            f"Expected `pool` to be a bool or names of {', '.join(POOL_MODELS)}, got "
            f"{', '.join(sorted(map(str, unknown)))}."
        )
    return tuple(name for name in POOL_MODELS if name in names)
