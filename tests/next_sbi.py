"""What sbi's main branch has and 0.27 has not: itself where it is installed, or its like.

The configurations of estimators build what `posterior_nn` builds. `NEXT` changes 0.27 in
the three ways that concern posteriors.
"""

from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from sbi.inference import NPE_C
from sbi.inference.posteriors import DirectPosterior, base_posterior
from sbi.inference.posteriors.posterior_parameters import DirectPosteriorParameters
from sbi.inference.potentials import base_potential
from sbi.inference.trainers import base as trainers
from sbi.neural_nets import posterior_nn
from torch import nn

try:
    from sbi.neural_nets import MAFConfig, MarginalNSFConfig, MDNConfig, NSFConfig
    from sbi.neural_nets import ZukoNSFConfig as ZukoNSFConfig
except ImportError:

    @dataclass(frozen=True, eq=False)
    class Config:
        model: ClassVar[str]
        hidden_features: int = 50
        embedding_net: nn.Module = field(default_factory=nn.Identity)

        def build(self, batch_input, batch_condition):
            build = posterior_nn(
                self.model,
                hidden_features=self.hidden_features,
                embedding_net=self.embedding_net,
            )
            return build(batch_input, batch_condition)

    class NSFConfig(Config):
        model = "nsf"

    class MAFConfig(Config):
        model = "maf"

    class MDNConfig(Config):
        model = "mdn"

    class ZukoNSFConfig(Config):
        model = "zuko_nsf"

    class MarginalNSFConfig:
        def build(self, batch_x):
            raise NotImplementedError


CONFIGS = {"nsf": NSFConfig, "maf": MAFConfig, "zuko_nsf": ZukoNSFConfig}
"""Configurations of flows, by what `posterior_nn` calls them."""

UNTRAINABLE = MDNConfig
"""The configuration of an estimator that can't be sampled differentiably."""

UNCONDITIONAL = MarginalNSFConfig
"""The configuration of an estimator without a condition."""

if "check_finite_x" in {own.name for own in fields(DirectPosteriorParameters)}:
    NextParameters = DirectPosteriorParameters
else:

    @dataclass(frozen=True)
    class NextParameters(DirectPosteriorParameters):
        check_finite_x: bool = True


def process_x(x, x_event_shape=None):
    return torch.atleast_2d(torch.as_tensor(x, dtype=torch.float32))


def without_deprecated(build_posterior):
    def build(
        self,
        density_estimator=None,
        prior=None,
        sample_with="direct",
        posterior_parameters=None,
    ):
        return build_posterior(
            self,
            density_estimator=density_estimator,
            prior=prior,
            sample_with=sample_with,
            posterior_parameters=posterior_parameters,
        )

    return build


def without_x(find_map):
    def find(self, num_iter=1_000, num_to_optimize=100, learning_rate=0.01, **others):
        return find_map(self, None, num_iter, num_to_optimize, learning_rate, **others)

    return find


def change(monkeypatch):
    """Give the installed sbi the new field, no check of x, and no deprecated argument."""
    monkeypatch.setattr(trainers, "DirectPosteriorParameters", NextParameters)
    for module in (base_posterior, base_potential):
        monkeypatch.setattr(module, "process_x", process_x)
    for owner, name, without in (
        (NPE_C, "build_posterior", without_deprecated),
        (DirectPosterior, "map", without_x),
    ):
        monkeypatch.setattr(owner, name, without(getattr(owner, name)))
