"""JNPE: one training gives the flow and three corrected posteriors."""

import time
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.accuracy.held_out import energy_nll, flow_nll
from benchmarks.methods.training import Fit, Training
from benchmarks.tasks.task import on_device
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.opinion_pool import Pool
from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior
from sbi_jeffreys.trainer import JNPE


class JNPETraining(Training):
    """JNPE. One training gives the flow and three corrected posteriors.

    The first is corrected by the energy, as JNPE does it. The second is corrected by the
    energy's networks alone, without the simpler models that they are pooled with. The
    third is corrected by the linear model alone.
    """

    batched_options = {}  # noqa: RUF012

    def __init__(self, method: str, **options: Any) -> None:
        """
        Args:
            method: Start of the names, which end in "_flow", "_corrected", "_networks"
                and "_linear".
            options: Options of `JNPE`.
        """
        kinds = ("flow", "corrected", "networks", "linear")
        self.methods = tuple(f"{method}_{kind}" for kind in kinds)
        self.options = options

    def on(self, device: str) -> "JNPETraining":
        """See the base class."""
        training = copy(self)
        training.device = device
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
        there = on_device(prior, self.device)
        options = {"device": self.device, "show_progress_bars": False, **self.options}
        trainer = JNPE(there, **options)
        trainer.append_simulations(theta, x)
        start = time.process_time()
        flow = trainer.train()
        cost = trainer.epoch, time.process_time() - start
        posterior = trainer.build_posterior()
        corrected = trainer.build_posterior(sample_with="energy")
        for each in (posterior, corrected):
            each.to("cpu")
        networks, linear = (
            EnergyPosterior(pair, prior) for pair in taken_apart(corrected.pair, theta, x)
        )

        def nll(posterior: EnergyPosterior) -> float:
            return energy_nll(posterior.pair.energy, flow, *test)

        return [
            Fit(posterior, flow_nll(flow, *test), *cost),
            *(Fit(p, nll(p), *cost) for p in (corrected, networks, linear)),
        ]


def taken_apart(pair: ModelPair, theta: Tensor, x: Tensor) -> tuple[ModelPair, ModelPair]:
    """Return the pair with its energy's networks alone, and with the linear model alone.

    Args:
        pair: Flow and energy. The energy may be pooled with simpler models.
        theta: Parameters that the linear model is fitted to, shape `(N, D)`.
        x: Simulations, shape `(N, ...)`.
    """
    networks, linear = deepcopy(pair), deepcopy(pair)
    if isinstance(pair.energy.net, Pool):
        networks.energy.net = pair.energy.net.net
    with torch.no_grad():
        features = pair.energy.embedding_net(x).flatten(1)
    pairs = Candidates.without_draws(pair.energy.standardize(theta), features)
    linear.energy.net = LinearModel.fit(pairs)
    return networks, linear
