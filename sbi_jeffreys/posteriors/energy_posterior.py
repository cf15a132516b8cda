"""The energy model as a posterior of sbi."""

from typing import Any

import torch
from sbi.utils import mcmc_transform
from sbi.utils.torchutils import process_device
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import device_of, x_or_default
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.flow import Shape
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors.corrected_sampler import CorrectedSampler
from sbi_jeffreys.posteriors.evidence_cache import EvidenceCache
from sbi_jeffreys.posteriors.interface import (
    TrustedPosterior,
    check_batch,
    move,
    observations,
    parameters_like,
    rows_like,
    shape_of,
)
from sbi_jeffreys.posteriors.parameters import EnergyPosteriorParameters
from sbi_jeffreys.posteriors.potential import EnergyPotential, batched_potential
from sbi_jeffreys.posteriors.sbi_samplers import FlowProposal
from sbi_jeffreys.posteriors.several_observations import (
    joint_importance_weights,
    joint_samples,
)
from sbi_jeffreys.posteriors.trust import TrustCheck
from sbi_jeffreys.sampling.importance_weights import ImportanceWeights, smoothed_weights


class EnergyPosterior(TrustedPosterior):
    r"""The posterior :math:`q(\theta | x) = e^{f(\theta, x)} / Z(x)` of an energy f.

    Samples are draws from the flow, corrected by the energy. They are chosen without
    replacement from more draws than are asked for, in proportion to Pareto-smoothed
    importance weights. Where a few draws have most of the weight, the draws go by
    sequential Monte Carlo from the flow to the energy. Samples carry no weights.

    `sample`, `log_prob`, `potential` and `map` take several observations in one call as
    several observations of the same parameters. They then work with the joint posterior
    given all of them, which is sampled by tempering. `sample_batched` and
    `log_prob_batched` take a batch of observations, each with parameters of its own.
    """

    corrects = True

    def __init__(
        self,
        pair: ModelPair,
        prior: Distribution,
        novelty: Novelty | None = None,
        num_simulations: int | None = None,
        parameters: EnergyPosteriorParameters | None = None,
        device: torch.device | str | None = None,
        is_amortised: bool = True,
        show_progress_bars: bool = True,
    ) -> None:
        """
        Args:
            pair: Flow and energy.
            prior: All samples are inside its support.
            novelty: Compares observations with the simulations, for `agreement`.
            num_simulations: Number of simulations of the training, for the record.
            parameters: How to sample, or None for the default.
            device: Where to sample; by default the CPU.
            is_amortised: Whether it is meant for all x, and not just near that of rounds.
            show_progress_bars: Whether to show progress where a call does not say it.
        """
        self.show_progress_bars = show_progress_bars
        self.is_amortised = is_amortised
        self.num_simulations = num_simulations
        self.parameters = parameters or EnergyPosteriorParameters()
        self.max_sampling_batch_size = self.parameters.max_sampling_batch_size
        self._trust = TrustCheck(pair.eval(), prior, novelty)
        self._evidence = EvidenceCache()
        self._set_up(process_device(device or "cpu"))

    def _set_up(self, device: torch.device | str) -> None:
        super().__init__(
            EnergyPotential(
                self.pair.energy,
                self.prior,
                device=device,
                may_have_nan=self.pair.flow.has_nan,
            ),
            theta_transform=mcmc_transform(
                self.prior,
                device=device,
                enable_transform=self.parameters.enable_transform,
            ),
            device=device,
        )
        self.proposal = FlowProposal(self.pair.flow, self.potential_fn)

    def __str__(self) -> str:
        name = type(self).__name__
        return f"Posterior p(θ|x) of type {name}: the flow's samples, corrected."

    @property
    def pair(self) -> ModelPair:
        """Flow and energy."""
        assert self._trust.pair is not None
        return self._trust.pair

    @property
    def prior(self) -> Distribution:
        """The prior, whose support contains all samples."""
        return self._trust.prior

    def to(self, device: torch.device | str) -> None:
        """Move the models, the prior, the simulations and the default x to a device."""
        move(self, self._trust, device, self._set_up)

    def sample(
        self,
        sample_shape: Shape = (),
        x: Tensor | None = None,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool | None = None,
        reject_outside_prior: bool = True,
    ) -> Tensor:
        """Return samples given one or several observations, shape `(*sample_shape, D)`.

        Warnings are given once for each posterior: where x is unlike the simulations,
        and where samples are not reliable (`sampling.halves`; for several observations,
        k̂ > 0.7 in some step).

        Args:
            sample_shape: Shape of the samples.
            x: One observation, with or without a batch axis, or several observations of
                the same parameters, `(n, *condition_shape)`; by default that of
                `set_default_x`.
            max_sampling_batch_size: Most draws from the flow at a time; by default that
                of the constructor. It has no effect on several observations.
            show_progress_bars: Whether to show progress; None for the default.
            reject_outside_prior: Has no effect, because no sample is outside the prior.

        Raises:
            ValueError: If `max_sampling_batch_size` is less than 1, if there is no
                observation, or if there are several and the energy was trained without a
                proper prior.
            RuntimeError: If no draw of the flow is inside the prior.
        """
        shape = shape_of(sample_shape)
        num = shape.numel()
        sampler = self._sampler(num, max_sampling_batch_size)
        conditions = self._conditions(x_or_default(self, x))
        self._trust.warn_of_unusual(conditions)
        if len(conditions) == 1:
            samples, is_reliable = sampler.sample(
                conditions, self.shows(show_progress_bars)
            )
            samples = samples[:, 0]
        else:
            joint = self._joint(conditions)
            samples, is_reliable = joint_samples(
                *joint, num, self.shows(show_progress_bars)
            )
        self._trust.warn_of_steps(is_reliable)
        return samples.reshape(*shape, *samples.shape[1:])

    def sample_batched(
        self,
        sample_shape: Shape,
        x: Tensor,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool | None = None,
        reject_outside_prior: bool = True,
    ) -> Tensor:
        """Return samples given each observation, shape `(*sample_shape, batch, D)`.

        A warning is given once for each posterior where samples are not reliable, see
        `sampling.halves`.

        Args:
            sample_shape: Shape of the samples for each observation.
            x: Observations, shape `(batch, *condition_shape)`.
            max_sampling_batch_size: Most draws from the flow at a time, over all
                observations together; by default that of the constructor.
            show_progress_bars: Whether to show progress; None for the default.
            reject_outside_prior: Has no effect, because no sample is outside the prior.

        Raises:
            ValueError: If `max_sampling_batch_size` is less than 1, or there is no
                observation.
            RuntimeError: If no draw of the flow is inside the prior.
        """
        shape = shape_of(sample_shape)
        samples, is_reliable = self._sampler(
            shape.numel(), max_sampling_batch_size
        ).sample(self._conditions(x), self.shows(show_progress_bars))
        self._trust.warn_of_steps(is_reliable)
        return samples.reshape(*shape, *samples.shape[1:])

    def importance_weights(
        self,
        x: Tensor | None = None,
        num_samples: int = 10_000,
        x_is_iid: bool = False,
        show_progress_bars: bool = False,
    ) -> ImportanceWeights:
        """Return draws with the weights that correct them to the energy model.

        Args:
            x: Observations, shape `(batch, *condition_shape)`; by default that of
                `set_default_x`.
            num_samples: Draws for each observation.
            x_is_iid: Whether these are several observations of the same parameters. If
                so, draws come from tempering, and weights from its last step. k̂ is the
                largest of all steps. The batch of the result has one element.
            show_progress_bars: Whether to show the progress of tempering.

        Raises:
            ValueError: If there is no observation, or fewer than 4 draws are asked for.
            RuntimeError: If no draw of the flow is inside the prior.
        """
        if num_samples < 4:
            raise ValueError(
                f"Expected `num_samples` to be at least 4, got {num_samples}."
            )
        conditions = self._conditions(x_or_default(self, x))
        if not x_is_iid:
            theta, log_weights = self.pair.weighted_draws(
                conditions, num_samples, self.prior, self.max_sampling_batch_size
            )
            return smoothed_weights(theta, log_weights)
        joint = self._joint(conditions)
        return joint_importance_weights(*joint, num_samples, show_progress_bars)

    def log_evidence_ratio(
        self,
        x: Tensor | None = None,
        num_samples: int = 10_000,
        x_is_iid: bool = False,
    ) -> tuple[Tensor, Tensor]:
        r"""Return log Z and its standard error in nats, each of shape `(batch,)`.

        .. math:: Z(x) = \int p(\theta) e^{r(\theta, x)} d\theta

        is 1 where r is the exact log-ratio :math:`\log p(x | \theta) / p(x)`. For n
        observations of the same parameters and an exact r, it is
        :math:`p(x_1, \ldots, x_n) / \prod_i p(x_i)`. The errors of r add up. The standard
        error tells the error of sampling, not that of r.

        The result is remembered for each x. It is estimated again only if more samples
        are asked for.

        Args:
            x: Observations, shape `(batch, *condition_shape)`; by default that of
                `set_default_x`.
            num_samples: Draws for each observation, at least 4.
            x_is_iid: Whether these are several observations of the same parameters. If
                so, the batch of the result has one element.

        Raises:
            ValueError: If there is no observation, or fewer than 4 draws are asked for.
            RuntimeError: If no draw of the flow is inside the prior.
        """
        conditions = self._conditions(x_or_default(self, x))
        return self._evidence.log_z(
            (conditions,) if x_is_iid else conditions.split(1),
            num_samples,
            max(1, self.max_sampling_batch_size // num_samples),
            lambda some: self.importance_weights(some, num_samples, x_is_iid),
        )

    def log_prob(
        self,
        theta: Tensor,
        x: Tensor | None = None,
        track_gradients: bool = False,
        num_normalizer_samples: int | None = None,
    ) -> Tensor:
        """Return log densities in nats, shape `(N,)`, normalised by the estimated log Z.

        Args:
            theta: Parameters, shape `(N, D)`.
            x: One observation, or several of the same parameters; by default that of
                `set_default_x`.
            track_gradients: Whether the result is differentiable to `theta`.
            num_normalizer_samples: Draws for the estimate of log Z. By default 10,000;
                2,000 for several observations, where tempering evaluates each often.

        Raises:
            ValueError: If there is no observation, or if there are several and the energy
                was trained without a proper prior.
            RuntimeError: If no draw of the flow is inside the prior.
        """
        conditions = self._conditions(x_or_default(self, x))
        theta = rows_like(theta, self.pair.energy.loc)
        is_joint = len(conditions) > 1
        if num_normalizer_samples is None:
            num_normalizer_samples = 2_000 if is_joint else 10_000
        log_z, _ = self.log_evidence_ratio(conditions, num_normalizer_samples, is_joint)
        return self._given(conditions)(theta, track_gradients=track_gradients) - log_z

    @torch.no_grad()
    def log_prob_batched(
        self, theta: Tensor, x: Tensor, num_normalizer_samples: int = 10_000
    ) -> Tensor:
        """Return log densities in nats, shape `(*sample_shape, batch)`.

        Args:
            theta: Parameters, shape `(*sample_shape, batch, D)`.
            x: Observations, shape `(batch, *condition_shape)`.
            num_normalizer_samples: Number of draws for each estimate of log Z.

        Raises:
            ValueError: If the batches differ, or there is no observation.
            RuntimeError: If no draw of the flow is inside the prior.
        """
        conditions = self._conditions(x)
        theta = parameters_like(theta, self.pair.energy.loc)
        check_batch(theta, len(conditions))
        log_z, _ = self.log_evidence_ratio(conditions, num_normalizer_samples)
        rows = theta.flatten(0, -3) if theta.ndim > 2 else theta.unsqueeze(0)
        f = batched_potential(
            self.pair.energy, self.prior, rows, conditions, self.max_sampling_batch_size
        )
        return (f - log_z).reshape(theta.shape[:-1])

    def _joint(self, x: Tensor) -> tuple[EnergyPotential, FlowProposal]:
        potential = self._given(x)
        return potential, FlowProposal(self.pair.flow, potential)

    def _sampler(self, num: int, block_size: int | None) -> CorrectedSampler:
        if block_size is None:
            block_size = self.max_sampling_batch_size
        return CorrectedSampler(self.pair, self.prior, num, block_size)

    def _conditions(self, x: Any) -> Tensor:
        """Return observations on the posterior's device, `(batch, *condition_shape)`."""
        flow = self.pair.flow
        x = observations(x, flow.condition_shape, flow.has_nan)
        if not len(x):
            raise ValueError("Expected at least one observation `x`, got none.")
        return x.to(device_of(self))
