"""Trainings of a second: two parameters, 120 simulations, small networks."""

from functools import partial

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn

from sbi_jeffreys import JNPE, LogRatioNet, build_spline_flow

BOX = BoxUniform(-torch.ones(2), torch.ones(2))
SMALL = partial(build_spline_flow, hidden_features=8, num_transforms=2, num_bins=4)
ENERGY = partial(LogRatioNet, hidden_features=16)

FROZEN = {"clip_max_norm": 1e-30}
"""Options of a training that changes no weight: its held-out loss stalls at once."""


class Apply(nn.Module):
    """A network without parameters."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def simulate(theta):
    return theta + 0.3 * torch.randn_like(theta)


def new_trainer(prior=BOX, density_estimator=SMALL, **options):
    """Return a trainer that has no simulations."""
    options = {"energy_net": ENERGY, "show_progress_bars": False, **options}
    return JNPE(prior, density_estimator, **options)


def make_trainer(prior=BOX, density_estimator=SMALL, num=120, x=None, seed=0, **options):
    """Return a trainer that has `num` simulations; `x` simulates them."""
    torch.manual_seed(seed)
    trainer = new_trainer(prior, density_estimator, **options)
    theta = (prior or BOX).sample((num,))
    return trainer.append_simulations(theta, (x or simulate)(theta))


def quick(trainer, max_num_epochs=2, **arguments):
    """Train for a few epochs, and return the flow."""
    with pytest.warns(UserWarning, match="max_num_epochs"):
        return trainer.train(
            training_batch_size=50, max_num_epochs=max_num_epochs, **arguments
        )


def same_weights(some, others):
    pairs = zip(some.parameters(), others.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def interrupted_at(number, function, error=KeyboardInterrupt):
    """Return a function that raises an error at a call, counted from one."""
    calls = []

    def wrapped(*arguments, **options):
        calls.append(None)
        if len(calls) == number:
            raise error
        return function(*arguments, **options)

    return wrapped
