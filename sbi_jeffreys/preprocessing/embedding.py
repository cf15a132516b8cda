"""The default preparation of x for the networks."""

from sbi.utils.sbiutils import Standardize
from torch import Tensor, nn

from sbi_jeffreys.preprocessing.log_scale import LogScale
from sbi_jeffreys.preprocessing.scaling import location_and_scale
from sbi_jeffreys.preprocessing.screening import Screening, related_to
from sbi_jeffreys.preprocessing.training_range import TrainingRange


def standardizing_embedding(
    theta: Tensor, x: Tensor, embedding_net: nn.Module | None
) -> nn.Module:
    """Return a network that standardises x, keeps it in range, and embeds it.

    Args:
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, *condition_shape)`. Each entry is standardised.
        embedding_net: Applied to standardised x within its `TrainingRange`. By default x
            is standardised on its `LogScale`, and `Screening` is applied last.
    """
    if embedding_net is not None:
        standardize = Standardize(*location_and_scale(x))
        return nn.Sequential(standardize, TrainingRange(standardize(x)), embedding_net)
    log_scale, screening = LogScale(x), Screening(related_to(theta, x))
    x = log_scale(x)
    standardize = Standardize(*location_and_scale(x))
    return nn.Sequential(log_scale, standardize, TrainingRange(standardize(x)), screening)
