r"""The energy that is kept: networks pooled with a linear model of the simulator.

.. math:: f = (1 - w) f_{networks} + w f_{linear}

is a logarithmic opinion pool (Genest & Zidek 1986). Networks have to learn even a linear
dependence, and memorise simulations meanwhile; the linear model has few parameters, and
where it is right it is hard to beat. The weight is the one of the least held-out loss,
but zero unless it gains more than a standard error of that gain.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from sbi_jeffreys.energy import ConditionalEnergy
from sbi_jeffreys.linear_model import LinearModel
from sbi_jeffreys.pair import ModelPair
from sbi_jeffreys.random_state import seeded

NUM_WEIGHTS = 41
"""Weights of the linear model that are tried, from 0 to 1."""

NUM_DRAWS = 256
"""Draws of the flow for each held-out x."""

CHUNK = 64
"""Held-out x looked at together, with their draws."""


class Pool(nn.Module):
    """A log-ratio network, or several, and a linear model: their weighted average."""

    weight: Tensor

    def __init__(self, net: nn.Module, linear: LinearModel, weight: float) -> None:
        """
        Args:
            net: Returns `(sample, batch)`, or of several members `(member, sample,
                batch)`, of which the mean is taken.
            linear: Returns `(sample, batch)`.
            weight: Of `linear`; what remains is that of `net`.
        """
        super().__init__()
        self.net = net
        self.linear = linear
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Embedded conditions, shape `(batch, features)`.
        """
        r = self.net(input, condition).reshape(-1, *input.shape[:-1]).mean(0)
        return r + self.weight.to(r) * (self.linear(input, condition) - r)


@torch.no_grad()
def as_seen(energy: ConditionalEnergy, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the energy's networks see of pairs: parameters, and features of x.

    Args:
        energy: On the device that they are moved to.
        theta: Parameters, shape `(N, D)`.
        x: Simulations, shape `(N, ...)`.
    """
    device = energy.loc.device
    chunks = x.split(1000)
    features = torch.cat([energy.embedding_net(chunk.to(device)) for chunk in chunks])
    inside = energy.support.inside(theta.to(device))
    return energy.standardize(inside), features.flatten(1)


@torch.no_grad()
def pooled(
    pair: ModelPair,
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
) -> tuple[ConditionalEnergy, float]:
    """Return the energy pooled with a linear model, and the weight of that.

    The weight is chosen with the model fitted to the training pairs; then it is fitted to
    all. The pool shares the energy's log-ratio network, and has an embedding of its own,
    for the energy's may be the flow's. The energy is returned as it is with a weight of
    zero, with fewer than two training pairs, or with features that are not finite.

    Args:
        pair: The trained models.
        training: Parameters and simulations, `(N, D)` and `(N, ...)`.
        validation: Held-out ones.
    """
    energy = pair.energy
    known, held_out = (as_seen(energy, *pairs) for pairs in (training, validation))
    theta, features = (torch.cat(both) for both in zip(known, held_out, strict=True))
    if len(training[0]) < 2 or not bool(features.isfinite().all()):
        return energy, 0.0
    weight = _best_weight(pair, LinearModel.fit(*known), *validation)
    if weight == 0.0:
        return energy, weight
    pool = _sharing_net(energy)
    pool.net = Pool(energy.net, LinearModel.fit(theta, features), weight)
    return pool, weight


def _best_weight(pair: ModelPair, linear: LinearModel, theta: Tensor, x: Tensor) -> float:
    r"""Return the weight that tells held-out parameters best from draws of the flow.

    The loss is $-\log \frac{w(\theta)}{w(\theta) + \sum_k w(\theta_k)}$ with importance
    weights w of the energy against the flow. It is bounded below; that with a log Z from
    draws alone is not, and rewards an energy that has its mass where the flow has none.
    """
    energy = pair.energy
    device = energy.loc.device
    alone = _sharing_net(energy)
    alone.net = linear
    weights = torch.linspace(0, 1, NUM_WEIGHTS, device=device)
    parts = []
    with seeded(device, 0):
        for some, x_o in zip(theta.split(CHUNK), x.split(CHUNK), strict=True):
            some, x_o = some.to(device).unsqueeze(0), x_o.to(device)
            flow, networks = pair.given(x_o)
            draws, log_p = flow.rsample_and_log_prob(NUM_DRAWS)
            candidates = torch.cat([some, draws])
            f = networks(candidates)
            gain = torch.where(f.isfinite(), alone(candidates, x_o) - f, 0.0)
            log_weights = f - torch.cat([flow.log_prob(some), log_p])
            log_weights = log_weights + weights[:, None, None] * gain
            parts.append(-log_weights.log_softmax(1)[:, 0])
    losses = torch.cat(parts, 1)
    best = losses.mean(1).nan_to_num(torch.inf).argmin()
    gain = losses[0] - losses[best]
    is_visible = bool(gain.mean() > gain.std() / len(gain) ** 0.5)
    return float(weights[best]) if is_visible else 0.0


def _sharing_net(energy: ConditionalEnergy) -> ConditionalEnergy:
    """Return a copy of all but the log-ratio network."""
    return deepcopy(energy, {id(energy.net): energy.net})
