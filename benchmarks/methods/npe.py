"""sbi's own methods: NPE, plain, regularised or as an ensemble; FMPE and NLE."""

import time
from collections.abc import Callable
from copy import copy
from functools import partial
from math import log
from typing import Any

import torch
from sbi.inference import FMPE, NLE, NPE
from sbi.inference.posteriors import EnsemblePosterior
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.net_builders import build_nsf
from torch import Tensor, nn
from torch.distributions import Distribution

from benchmarks.accuracy.held_out import flow_nll, log_mass_inside
from benchmarks.methods.training import NO_VALUE, Fit, Training
from sbi_jeffreys.models.building import FlowBuilder
from sbi_jeffreys.preprocessing.embedding import standardizing_embedding


class RegularizedNPE(NPE):
    """NPE with weight decay."""

    weight_decay = 1e-3

    def _train_epoch(self, *args: Any, **kwargs: Any) -> float:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.weight_decay
        return super()._train_epoch(*args, **kwargs)


class NPETraining(Training):
    """sbi's NPE with one of its flows, at default options."""

    batched_options = {"reject_outside_prior": False}  # noqa: RUF012
    build_embedding: Callable[[], nn.Module] = nn.Identity

    def __init__(
        self, method: str, flow: str, kind: type[NPE] = NPE, **size: Any
    ) -> None:
        """
        Args:
            method: Name of the method.
            flow: Name of the flow. sbi's default is "maf".
            kind: Class of the trainer.
            size: Size of the flow's networks, as in sbi's `posterior_nn`.
        """
        self.methods = (method,)
        self.flow, self.kind, self.size = flow, kind, size

    def embedding(self, build: Callable[[], nn.Module]) -> "NPETraining":
        """Return this training on x that a new network embeds.

        Args:
            build: Returns the network.
        """
        training = copy(self)
        training.build_embedding = build
        return training

    def fit(
        self,
        prior: Distribution,
        theta: Tensor,
        x: Tensor,
        test: tuple[Tensor, Tensor],
        seed: int,
    ) -> list[Fit]:
        """See the base class."""
        torch.manual_seed(seed)
        trainer = self.kind(prior, self._builder(theta, x), show_progress_bars=False)
        trainer.append_simulations(theta, x)
        start = time.process_time()
        flow = trainer.train()
        seconds = time.process_time() - start
        (epochs,) = trainer.summary["epochs_trained"]
        inside = log_mass_inside(flow, prior, test[1]).mean()
        nll = flow_nll(flow, *test) + float(inside)
        return [Fit(trainer.build_posterior(), nll, epochs, seconds)]

    def _builder(self, theta: Tensor, x: Tensor) -> FlowBuilder:
        return posterior_nn(self.flow, embedding_net=self.build_embedding(), **self.size)


class PreparedNPETraining(NPETraining):
    """NPE with "nsf" on x as JNPE prepares it for its networks."""

    def __init__(self, method: str) -> None:
        """
        Args:
            method: Name of the method.
        """
        super().__init__(method, "nsf")

    def _builder(self, theta: Tensor, x: Tensor) -> FlowBuilder:
        prepare = standardizing_embedding(theta, x, None)
        # sbi's `posterior_nn` takes no embedding without parameters. `build_nsf` calls
        # the parameters x, and the condition y.
        return partial(build_nsf, embedding_net=prepare, z_score_y="none")


class EnsembleTraining(Training):
    """An average of trainings on the same simulations with different seeds."""

    batched_options = NPETraining.batched_options

    def __init__(self, method: str, member: NPETraining, num: int = 5) -> None:
        """
        Args:
            method: Name of the method.
            member: Training of each member.
            num: Number of members.
        """
        self.methods = (method,)
        self.member, self.num = member, num

    def embedding(self, build: Callable[[], nn.Module]) -> "EnsembleTraining":
        """See `NPETraining.embedding`."""
        (method,) = self.methods
        return EnsembleTraining(method, self.member.embedding(build), self.num)

    def fit(
        self,
        prior: Distribution,
        theta: Tensor,
        x: Tensor,
        test: tuple[Tensor, Tensor],
        seed: int,
    ) -> list[Fit]:
        """See the base class."""
        seeds = range(seed * self.num, (seed + 1) * self.num)
        fits = [self.member.fit(prior, theta, x, test, s)[0] for s in seeds]
        posteriors = [fit.posterior for fit in fits]
        flows = [posterior.posterior_estimator for posterior in posteriors]
        with torch.no_grad():
            log_probs = [
                flow.log_prob(test[0][None], test[1])[0]
                - log_mass_inside(flow, prior, test[1])
                for flow in flows
            ]
        nll = -(torch.stack(log_probs).logsumexp(0) - log(self.num)).mean()
        return [
            Fit(
                EnsemblePosterior(posteriors),
                float(nll),
                sum(fit.epochs for fit in fits),
                sum(fit.training_seconds for fit in fits),
            )
        ]


class OtherTraining(Training):
    """Another trainer of sbi's, at default options, without test NLL and calibration.

    FMPE solves an ODE for each density and each sample. NLE's posterior is not normalised
    and is sampled by MCMC.
    """

    def __init__(self, method: str, kind: type[FMPE] | type[NLE]) -> None:
        """
        Args:
            method: Name of the method.
            kind: Class of the trainer.
        """
        self.methods = (method,)
        self.kind = kind

    def fit(
        self,
        prior: Distribution,
        theta: Tensor,
        x: Tensor,
        test: tuple[Tensor, Tensor],
        seed: int,
    ) -> list[Fit]:
        """See the base class."""
        torch.manual_seed(seed)
        trainer = self.kind(prior, show_progress_bars=False)
        trainer.append_simulations(theta, x)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        (epochs,) = trainer.summary["epochs_trained"]
        return [Fit(trainer.build_posterior(), NO_VALUE, epochs, seconds)]
