"""The methods compared: sbi's own, plain and regularised, and JNPE.

A training turns simulations into one fitted posterior for each of its methods.
"""

import time
from abc import ABC, abstractmethod
from copy import copy, deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from sbi.inference import FMPE, NLE, NPE
from sbi.inference.posteriors import EnsemblePosterior
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.net_builders import build_nsf
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.contenders import on_device
from benchmarks.held_out import energy_nll, flow_nll
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.opinion_pool import Pool
from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior
from sbi_jeffreys.preprocessing.embedding import standardizing_embedding
from sbi_jeffreys.trainer import JNPE, FlowBuilder

NO_VALUE = float("nan")


class Fit(NamedTuple):
    """A posterior, with what is known of its training.

    Attributes:
        posterior: One of sbi's kind.
        nll: Test NLL in nats of the weights kept; NaN where densities are unnormalised,
            or take an ODE to be solved each.
        nll_last: Likewise of the weights after the last epoch; NaN where there are none,
            as of a linear model, or of networks pooled with one.
        epochs: Trained; of all networks together.
        training_seconds: Of the processor, for all networks together.
    """

    posterior: Any
    nll: float
    nll_last: float
    epochs: int
    training_seconds: float


class Training(ABC):
    """Fits its methods to simulations.

    Attributes:
        methods: Names of what it fits.
        batched_options: Of `sample_batched`, to draw for hundreds of x without rejecting
            any sample; None where that takes too long.
        device: That it trains on.
    """

    methods: tuple[str, ...]
    device: str = "cpu"
    batched_options: dict[str, Any] | None = None

    @abstractmethod
    def fit(
        self,
        prior: Distribution,
        theta: Tensor,
        x: Tensor,
        test: tuple[Tensor, Tensor],
        seed: int,
    ) -> list[Fit]:
        """Return a fit for each of the methods.

        Args:
            prior: Over `(D,)`.
            theta: Parameters of simulations, shape `(N, D)`.
            x: Simulations, shape `(N, ...)`.
            test: Fresh pairs, likewise.
            seed: Of networks and batches.
        """

    def on(self, device: str) -> "Training":
        """Return this training there, if it is one of JNPE; its posteriors are not."""
        return self


class LastEpochNPE(NPE):
    """NPE that remembers the weights of its last epoch, which sbi throws away."""

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        self.last_weights = deepcopy(self._neural_net.state_dict())
        return super()._converged(epoch, stop_after_epochs)


class RegularizedNPE(LastEpochNPE):
    """NPE with weight decay."""

    weight_decay = 1e-3

    def _train_epoch(self, *args: Any, **kwargs: Any) -> float:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.weight_decay
        return super()._train_epoch(*args, **kwargs)


class NPETraining(Training):
    """sbi's NPE with one of its flows, at default options."""

    batched_options = {"reject_outside_prior": False}  # noqa: RUF012

    def __init__(
        self, method: str, flow: str, kind: type[LastEpochNPE] = LastEpochNPE, **size: Any
    ) -> None:
        """
        Args:
            method: Name.
            flow: "maf", sbi's default, or another.
            kind: The trainer.
            size: Of the flow's networks, as in sbi's `posterior_nn`.
        """
        self.methods = (method,)
        self.flow, self.kind, self.size = flow, kind, size

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
        kept = trainer.train()
        seconds = time.process_time() - start
        last = deepcopy(kept)
        last.load_state_dict(trainer.last_weights)
        (epochs,) = trainer.summary["epochs_trained"]
        posterior = trainer.build_posterior()
        return [
            Fit(posterior, flow_nll(kept, *test), flow_nll(last, *test), epochs, seconds)
        ]

    def _builder(self, theta: Tensor, x: Tensor) -> FlowBuilder:
        return posterior_nn(self.flow, **self.size)


class PreparedNPETraining(NPETraining):
    """NPE with "nsf", but x is as JNPE's networks get it: `standardizing_embedding`."""

    def __init__(self, method: str) -> None:
        """
        Args:
            method: Name.
        """
        super().__init__(method, "nsf")

    def _builder(self, theta: Tensor, x: Tensor) -> FlowBuilder:
        prepare = standardizing_embedding(theta, x, None)
        # sbi's `posterior_nn` takes no embedding without parameters. Of `build_nsf`, x
        # is the parameters, and y what they are conditioned on.
        return partial(build_nsf, embedding_net=prepare, z_score_y="none")


class EnsembleTraining(Training):
    """Trainings of one kind, on the same simulations, with different seeds; averaged."""

    batched_options = NPETraining.batched_options

    def __init__(self, method: str, member: NPETraining, num: int = 5) -> None:
        """
        Args:
            method: Name.
            member: What each member is trained by.
            num: Of members.
        """
        self.methods = (method,)
        self.member, self.num = member, num

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
        with torch.no_grad():
            log_probs = torch.stack(
                [
                    p.posterior_estimator.log_prob(test[0][None], test[1])[0]
                    for p in posteriors
                ]
            )
        nll = -(log_probs.logsumexp(0) - torch.tensor(self.num).log()).mean()
        return [
            Fit(
                EnsemblePosterior(posteriors),
                float(nll),
                NO_VALUE,
                sum(fit.epochs for fit in fits),
                sum(fit.training_seconds for fit in fits),
            )
        ]


class OtherTraining(Training):
    """Another trainer of sbi's, at default options, without test NLL and calibration.

    Of FMPE each density and each sample takes an ODE to be solved; NLE's posterior is
    not normalised, and sampled by MCMC.
    """

    def __init__(self, method: str, kind: type[FMPE] | type[NLE]) -> None:
        """
        Args:
            method: Name.
            kind: The trainer.
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
        return [Fit(trainer.build_posterior(), NO_VALUE, NO_VALUE, epochs, seconds)]


class JNPETraining(Training):
    """JNPE, of which one training gives the flow and three corrected posteriors.

    They are corrected by the energy, as JNPE does; by its networks alone, without the
    simpler models that they are pooled with; and by one of those alone, the linear model.
    """

    batched_options = {}  # noqa: RUF012

    def __init__(self, method: str, **options: Any) -> None:
        """
        Args:
            method: Name; "_flow", "_corrected", "_networks", "_linear" are added.
            options: Of `JNPE`; by default its own.
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
        latest = trainer.latest.to("cpu")
        posterior = trainer.build_posterior()
        corrected = trainer.build_posterior(sample_with="energy")
        for each in (posterior, corrected):
            each.to("cpu")
        networks, linear = (
            EnergyPosterior(pair, prior) for pair in taken_apart(corrected.pair, theta, x)
        )

        def nll(posterior: EnergyPosterior) -> float:
            return energy_nll(posterior.pair.energy, flow, *test)

        last_flow = flow_nll(latest.flow, *test)
        last_energy = energy_nll(latest.energy, latest.flow, *test)
        return [
            Fit(posterior, flow_nll(flow, *test), last_flow, *cost),
            Fit(corrected, nll(corrected), NO_VALUE, *cost),
            Fit(networks, nll(networks), last_energy, *cost),
            Fit(linear, nll(linear), NO_VALUE, *cost),
        ]


def taken_apart(pair: ModelPair, theta: Tensor, x: Tensor) -> tuple[ModelPair, ModelPair]:
    """Return the pair with its energy's networks alone, and with the linear model alone.

    Args:
        pair: Flow and energy, which may be pooled with simpler models.
        theta: Parameters to fit a linear one to, shape `(N, D)`.
        x: Simulations, shape `(N, ...)`.
    """
    networks, linear = deepcopy(pair), deepcopy(pair)
    if isinstance(pair.energy.net, Pool):
        networks.energy.net = pair.energy.net.net
    with torch.no_grad():
        features = pair.energy.embedding_net(x).flatten(1)
    linear.energy.net = LinearModel.fit(pair.energy.standardize(theta), features)
    return networks, linear


_NSF = NPETraining("npe_nsf", "nsf")

TRAININGS: dict[str, Training] = {
    "npe_maf": NPETraining("npe_maf", "maf"),
    "npe_nsf": _NSF,
    "npe_nsf_prepared": PreparedNPETraining("npe_nsf_prepared"),
    "npe_nsf_ensemble": EnsembleTraining("npe_nsf_ensemble", _NSF),
    "npe_nsf_regularized": NPETraining(
        "npe_nsf_regularized", "nsf", RegularizedNPE, dropout_probability=0.2
    ),
    "fmpe": OtherTraining("fmpe", FMPE),
    "nle": OtherTraining("nle", NLE),
    "jnpe": JNPETraining("jnpe"),
    "jnpe_fixed": JNPETraining("jnpe_fixed", weighting="fixed"),
}
METHODS = {
    method: name for name, training in TRAININGS.items() for method in training.methods
}
"""The training that each method comes from."""
