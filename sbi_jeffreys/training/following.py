r"""The flow follows an energy that stays as it is.

    min over φ of   E_x KL(q ‖ p_φ) = E_{(θ, x)}[−w log p_φ] + const.    "forward"
             or of  E_x KL(p_φ ‖ q) = E_x E_{θ~p_φ}[log p_φ − f] + const.

The pairs (θ, x) are emulated: θ is drawn from the prior, and x from a model of the
simulator. There is no end of them, so the flow can't memorise. The weights w are
q(θ|x) / (the model's posterior). Where the model has most of the pool, they are near one,
and the forward divergence covers all modes of the posterior. Where it has little, they
are noisy, and the other divergence does not need them. Half of its x are then those of
simulations, because emulated x may be far from them. Without a model to draw from, all
are. The flow's held-out negative log-likelihood decides which weights of the flow are
kept.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from sbi_jeffreys.data.batches import Batches
from sbi_jeffreys.data.processes import share_tensors
from sbi_jeffreys.models.conditional import Conditional
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.objective.multipliers import FixedMultipliers
from sbi_jeffreys.training.checkpoint import FollowedFlow, copy_nested
from sbi_jeffreys.training.early_stopping import EarlyStopping, LastEpoch
from sbi_jeffreys.training.epochs import EpochLoop
from sbi_jeffreys.training.schedule import Cycles
from sbi_jeffreys.training.step import PrimalDualStep, TrainedPair, TrainingOptions

AVERAGING = 0.99
"""Weight of the past in the moving average of the flow's weights, per step."""


@dataclass(frozen=True)
class Guide:
    """What a flow follows.

    Attributes:
        energy: The energy. It stays as it is, in evaluation mode.
        batches: Pairs to follow it on.
        forward: Whether KL(energy ‖ flow) is minimised, by the pairs' log-likelihood, or
            KL(flow ‖ energy).
        are_embedded: Whether the x of `batches` are embedded already.
        num_epochs: Number of epochs.
        keeps_last: Whether the flow of the last epoch is kept, whatever its held-out
            loss, because held-out pairs are not of the energy's posterior.
        later: Work that comes after, in epochs, for the progress bar.
        description: Label of the progress bar.
    """

    energy: ConditionalEnergy
    batches: Batches
    forward: bool
    are_embedded: bool
    num_epochs: int
    keeps_last: bool = False
    later: float = 0.0
    description: str = "JNPE's flow follows the energy (3/3)"


class FollowingPair(TrainedPair):
    """A pair of which the flow alone is trained."""

    def __init__(
        self, flow: ConditionalFlow, guide: Guide, options: TrainingOptions
    ) -> None:
        """
        Args:
            flow: The flow.
            guide: What it follows.
            options: See `TrainingOptions`.
        """
        super().__init__(flow, guide.energy, options)
        self.forward_kl, self.are_embedded = guide.forward, guide.are_embedded

    def forward(self, theta: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """Return the divergence in nats, up to a constant, among zeros, shape `(3,)`.

        KL(energy ‖ flow) comes first, KL(flow ‖ energy) second, as in `Divergences`.

        Args:
            theta: Parameters, shape `(batch, D)`.
            x: Simulations `(batch, ...)`, or their features `(batch, features)`.
            weights: Weights of the pairs, shape `(batch,)`.
        """
        flow, energy = self._given_embedded(x) if self.are_embedded else self.given(x)
        zero = x.new_zeros(())
        if self.forward_kl:
            log_p = flow.log_prob(theta.unsqueeze(0))[0]
            return torch.stack([-(weights * log_p).mean(), zero, zero])
        draws, log_p = flow.rsample_and_log_prob(1)
        return torch.stack([zero, (log_p - energy(draws)).mean(), zero])

    def _given_embedded(
        self, features: Tensor
    ) -> tuple[Conditional, Callable[[Tensor], Tensor]]:
        energy = partial(self.energy, condition=features, embedded=features)
        return self.flow.given_embedded(features), energy


def follow(
    flow: ConditionalFlow,
    guide: Guide,
    validation: Batches,
    *,
    options: TrainingOptions,
    learning_rate: float,
    best_loss: float,
    seed: int,
    device: torch.device,
    clip_max_norm: float | None,
    show_progress: bool,
) -> FollowedFlow:
    """Train the flow in place. Only weights that lower its held-out loss are kept.

    If the loss is not finite, the flow stays as it was, with a warning. After an
    interrupt (Ctrl-C) it has what it gained before.

    Args:
        flow: The flow.
        guide: What it follows.
        validation: Held-out pairs.
        options: See `TrainingOptions`.
        learning_rate: Largest learning rate of Adam.
        best_loss: Held-out negative log-likelihood of the flow as it is, in nats.
        seed: Seed of the random numbers.
        device: Where the models are.
        clip_max_norm: Bound on the norm of the gradient; None for no bound.
        show_progress: Whether to show a progress bar.

    Returns:
        The flow's lowest held-out loss and its weights.
    """
    pair = FollowingPair(flow, guide, replace(options, averaging=AVERAGING))
    share_tensors([t.data for t in pair.state_dict().values()])
    stopping = LastEpoch() if guide.keeps_last else EarlyStopping(best_loss)
    frozen = pair.parameter_groups()[1]
    if guide.are_embedded and flow.embedding_net is not None:
        frozen += flow.embedding_net.parameters()
    with _without_gradients(frozen):
        step = PrimalDualStep(
            pair,
            FixedMultipliers((1.0, 1.0, 0.0), device),
            learning_rate,
            energy_learning_rate=None,
        )
        loop = EpochLoop(step, stopping, Cycles(max(1, guide.num_epochs)), seed)
        try:
            loop.run(
                guide.batches,
                validation,
                guide.num_epochs,
                guide.num_epochs,
                clip_max_norm,
                show_progress,
                guide.description,
                guide.later,
            )
        except FloatingPointError as error:
            warnings.warn(f"{error} The flow stays as it was.", stacklevel=3)
        except KeyboardInterrupt:
            warnings.warn(
                f"{guide.description}: interrupted after 0 epochs. The flow stays as it "
                "was. `train(resume_training=True)` does this again.",
                stacklevel=3,
            )
    weights = copy_nested(flow.state_dict())
    return FollowedFlow(stopping.best_loss, weights, loop.was_interrupted)


@contextmanager
def _without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Switch off the gradients of some parameters, and restore them afterwards."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in zip(parameters, before, strict=True):
            parameter.requires_grad_(requires_grad)
