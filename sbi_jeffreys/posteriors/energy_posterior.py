"""The energy model as a posterior: the flow's draws, corrected by importance weights."""

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import PosteriorParameters
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils import mcmc_transform
from sbi.utils.sbiutils import within_support
from sbi.utils.torchutils import process_device
from sbi.utils.user_input_checks import process_x
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.diagnostics.agreement import ChecksAgreement
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.models.flow import Shape
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.posteriors.potential import EnergyPotential
from sbi_jeffreys.posteriors.sbi_samplers import FlowProposal
from sbi_jeffreys.sampling.blocks import blocks, progress_bar
from sbi_jeffreys.sampling.importance import ImportanceWeights, corrected_draws, smooth
from sbi_jeffreys.sampling.smc import (
    LEAST_EFFECTIVE,
    MIN_PARTICLES,
    annealed,
    resample_and_move,
    temper,
)

MIN_DRAWS = 100
"""Draws from the flow for each observation, however few samples are asked for."""

MAX_CACHED = 10_000
"""Observations of which log Z is remembered."""


@dataclass(frozen=True)
class EnergyPosteriorParameters(PosteriorParameters):
    """How `build_posterior(sample_with="energy")` samples.

    Attributes:
        ess_per_sample: The flow is drawn from until the effective sample size of the
            draws is this many times the number of samples chosen from them;
        max_displaced: and until at most this share of the probability is where the flow,
            rather than the energy, has it, for no draw is chosen twice;
        max_draws_per_sample: or until there are this many times as many. Where more is
            displaced even then, samples are chosen in proportion to their weights and
            moved apart by MCMC (`tempering`); but not from fewer than 1,000 draws.
        max_sampling_batch_size: Most draws from the flow at a time.
        enable_transform: Whether `map` ascends in unconstrained space.
    """

    ess_per_sample: float = 2.0
    max_displaced: float = 0.01
    max_draws_per_sample: float = 16.0
    max_sampling_batch_size: int = 10_000
    enable_transform: bool = True

    def validate(self) -> None:
        """Raise a ValueError if a parameter is out of range."""
        for name, least in (
            ("ess_per_sample", 0.1),
            ("max_displaced", 0),
            ("max_draws_per_sample", 1),
            ("max_sampling_batch_size", 1),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(
                    f"Expected `{name}` to be at least {least}, got {value}."
                )


class EnergyPosterior(ChecksAgreement, NeuralPosterior):
    r"""$q(\theta | x) = e^{f(\theta, x)} / Z(x)$, sampled by way of the flow.

    Samples are chosen from more draws of the flow, without replacement, in
    proportion to Pareto-smoothed importance weights (`correction`); where too few have
    any weight, with replacement, and then moved apart by MCMC, if need be by way of
    densities between flow and energy (`tempering`). They carry no weights.
    Several observations in one call of `sample`, `log_prob`, `potential` or
    `map` are several observations of the same parameters: the posterior given all of
    them is sampled by tempering, too. `sample_batched` and `log_prob_batched`
    are given a batch of observations, each with parameters of its own.
    """

    pair: ModelPair

    def __init__(
        self,
        pair: ModelPair,
        prior: Distribution,
        novelty: Novelty | None = None,
        num_simulations: int | None = None,
        parameters: EnergyPosteriorParameters | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """
        Args:
            pair: Flow and energy.
            prior: Its support bounds all samples.
            novelty: Compares observations with the simulations, for `agreement`.
            num_simulations: That flow and energy were trained on, for the record.
            parameters: How to sample; see there for the defaults.
            device: Where to sample; by default the CPU.
        """
        self.pair = pair.eval()
        self.prior = prior
        self.novelty = novelty
        self.num_simulations = num_simulations
        self.parameters = parameters or EnergyPosteriorParameters()
        self.max_sampling_batch_size = self.parameters.max_sampling_batch_size
        self._log_z: OrderedDict[bytes, tuple[int, float, float]] = OrderedDict()
        self._on_device(process_device(device or "cpu"))

    def _on_device(self, device: torch.device | str) -> None:
        super().__init__(
            EnergyPotential(self.pair.energy, self.prior, device=device),
            theta_transform=mcmc_transform(
                self.prior,
                device=device,
                enable_transform=self.parameters.enable_transform,
            ),
            device=device,
        )
        self.proposal = FlowProposal(self.pair.flow, self.potential_fn)
        self._purpose = "It corrects the flow's samples by the energy."

    def to(self, device: torch.device | str) -> None:
        """Move all that belongs to the posterior to the device."""
        device, x = process_device(device), self.default_x
        self.pair.to(device)
        self.prior = move_distribution_to_device(self.prior, device)
        if self.novelty is not None:
            self.novelty.to(device)
        self._on_device(device)
        if x is not None:
            self.set_default_x(x)

    def sample(
        self,
        sample_shape: Shape = (),
        x: Tensor | None = None,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool = True,
        reject_outside_prior: bool = True,
        *,
        replacement: bool = False,
    ) -> Tensor:
        """Return samples given an observation, or several, shape `(*sample_shape, D)`.

        Warns, once for each posterior, where x is unlike the simulations, or k̂ > 0.7.

        Args:
            sample_shape: Shape of the samples.
            x: One observation, with or without a batch axis, or several of the same
                parameters, `(n, *condition_shape)`; by default that of `set_default_x`.
            max_sampling_batch_size: Most draws from the flow at a time; by default that
                of the constructor. Without effect for several observations.
            show_progress_bars: Whether to show progress.
            reject_outside_prior: Without effect; none are outside of its support.
            replacement: Whether the same draw may be chosen several times. Without
                effect for several observations.

        Raises:
            ValueError: If there is no observation, or several without a proper prior.
            RuntimeError: If no draw of the flow is inside of the prior.
        """
        conditions = self._conditions(self._x_else_default_x(x))
        self._warn_of_unusual(conditions)
        if len(conditions) == 1:
            samples, pareto_k = self._sample_each(
                sample_shape,
                conditions,
                max_sampling_batch_size,
                show_progress_bars,
                replacement,
            )
            self._warn_of(pareto_k)
            return samples[..., 0, :]
        num = torch.Size(sample_shape).numel()
        self.potential_fn.set_x(conditions)
        particles = temper(
            self.potential_fn,
            self.proposal,
            max(num, MIN_PARTICLES),
            show_progress_bars,
        )
        self._warn_of(particles.pareto_k)

        def log_density(theta: Tensor) -> Tensor:
            return self.potential_fn(theta[:, 0], track_gradients=False).unsqueeze(1)

        support = self.pair.energy.support
        theta = resample_and_move(
            log_density, support, particles, max(num, MIN_PARTICLES)
        )
        return theta[:num].reshape(*sample_shape, *self._theta_shape)

    def sample_batched(
        self,
        sample_shape: Shape,
        x: Tensor,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool = True,
        reject_outside_prior: bool = True,
        *,
        replacement: bool = False,
    ) -> Tensor:
        """Return samples given each observation, shape `(*sample_shape, batch, D)`.

        Of fewer than 1,000 draws, where fewer have any weight than there are samples
        asked for, some are chosen several times. Warns, once for each posterior, where
        k̂ > 0.7 of at least 1,000 draws.

        Args:
            sample_shape: Shape of the samples for each observation.
            x: Observations, shape `(batch, *condition_shape)`.
            max_sampling_batch_size: Most draws from the flow at a time; by default that
                of the constructor.
            show_progress_bars: Whether to show progress.
            reject_outside_prior: Without effect; none are outside of its support.
            replacement: Whether the same draw may be chosen several times.

        Raises:
            ValueError: If `max_sampling_batch_size` is less than 1.
            RuntimeError: If no draw of the flow is inside of the prior.
        """
        samples, pareto_k = self._sample_each(
            sample_shape,
            self._conditions(x),
            max_sampling_batch_size,
            show_progress_bars,
            replacement,
        )
        self._warn_of(pareto_k)
        return samples

    def _sample_each(
        self,
        sample_shape: Shape,
        conditions: Tensor,
        size: int | None,
        show_progress: bool,
        replacement: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return samples, `(*sample_shape, batch, D)`, and k̂ of the draws, `(batch,)`."""
        num = torch.Size(sample_shape).numel()
        ess = self.parameters.ess_per_sample * num
        max_displaced = None if replacement else self.parameters.max_displaced
        most = max(MIN_DRAWS, ceil(self.parameters.max_draws_per_sample * num))
        start = min(most, max(MIN_DRAWS, num, ceil(1.2 * ess)))
        if size is None:
            size = self.max_sampling_batch_size
        samples = conditions.new_empty(num, len(conditions), *self._theta_shape)
        pareto_k = conditions.new_full((len(conditions),), -torch.inf)
        with progress_bar(num, len(conditions), show_progress) as bar:
            for _, columns in blocks(start, len(conditions), max(start, size)):
                some = conditions[columns]

                def draw(
                    which: Tensor, num: int, x: Tensor = some
                ) -> tuple[Tensor, Tensor]:
                    return self.pair.weighted_draws(x[which], num, self.prior, size)

                def move(
                    which: Tensor,
                    theta: Tensor,
                    log_weights: Tensor,
                    x: Tensor = some,
                ) -> Tensor:
                    return self._moved_apart(theta, log_weights, x[which], num, size)

                samples[:, columns], pareto_k[columns] = corrected_draws(
                    draw, len(some), num, start, most, ess, max_displaced, move
                )
                bar.update(num * len(some))
        shape = (*sample_shape, len(conditions), *self._theta_shape)
        return samples.reshape(shape), pareto_k

    @torch.no_grad()
    def _moved_apart(
        self, theta: Tensor, log_weights: Tensor, x: Tensor, num: int, size: int
    ) -> Tensor:
        """Return samples `(num, batch, D)`, by MCMC from weighted draws of the flow.

        At most `size` parameters are looked at at a time.
        """
        flow, energy = self.pair.given(x)
        rows = max(1, size // len(x))

        def log_energy(theta: Tensor) -> Tensor:
            f = torch.cat([energy(some) for some in theta.split(rows)])
            inside = within_support(self.prior, theta.flatten(0, 1)).reshape(f.shape)
            return torch.where(inside, f, -torch.inf)

        def ends(theta: Tensor) -> tuple[Tensor, Tensor]:
            log_flow = torch.cat([flow.log_prob(some) for some in theta.split(rows)])
            return log_flow, log_energy(theta)

        support, most = self.pair.energy.support, max(num, MIN_PARTICLES)
        particles = annealed(ends, support, theta, log_weights, most, LEAST_EFFECTIVE)
        return resample_and_move(log_energy, support, particles, most)[:num]

    def importance_weights(
        self,
        x: Tensor | None = None,
        num_samples: int = 10_000,
        x_is_iid: bool = False,
        show_progress_bars: bool = False,
    ) -> ImportanceWeights:
        """Return draws from the flow with the weights that correct them.

        Args:
            x: Observations, shape `(batch, *condition_shape)`; by default that of
                `set_default_x`.
            num_samples: Draws for each observation.
            x_is_iid: Whether these are several observations of the same parameters. Then
                draws come from tempering, weights from its last step, k̂ is the largest
                of all steps, and the batch is 1.
            show_progress_bars: Whether to show the tempering's progress.

        Raises:
            ValueError: If there is no observation, or no sample is asked for.
            RuntimeError: If no draw of the flow is inside of the prior.
        """
        if num_samples < 4:
            raise ValueError(
                f"Expected `num_samples` to be at least 4, got {num_samples}."
            )
        conditions = self._conditions(self._x_else_default_x(x))
        if not x_is_iid:
            return smooth(
                *self.pair.weighted_draws(
                    conditions, num_samples, self.prior, self.max_sampling_batch_size
                )
            )
        self.potential_fn.set_x(conditions)
        particles = temper(
            self.potential_fn, self.proposal, num_samples, show_progress_bars
        )
        return smooth(particles.theta, particles.log_weights)._replace(
            pareto_k=particles.pareto_k,
            log_z=particles.log_z,
            log_z_se=particles.log_z_se,
        )

    def log_evidence_ratio(
        self,
        x: Tensor | None = None,
        num_samples: int = 10_000,
        x_is_iid: bool = False,
    ) -> tuple[Tensor, Tensor]:
        r"""Return log Z and its standard error in nats, both of shape `(batch,)`.

        $Z(x) = \int p(\theta) e^{r(\theta, x)} d\theta$ is 1 where r is the log-ratio
        $\log p(x | \theta) / p(x)$. For n observations of the same parameters, and such
        an r, it is $p(x_1, \ldots, x_n) / \prod_i p(x_i)$; the errors of r add up. The
        standard error is that of the sampling, not of r.

        It is remembered for each x, and estimated anew only from more samples.

        Args:
            x: As in `importance_weights`.
            num_samples: Likewise.
            x_is_iid: Likewise.

        Raises:
            ValueError: As `importance_weights`.
            RuntimeError: Likewise.
        """
        conditions = self._conditions(self._x_else_default_x(x))
        parts = (conditions,) if x_is_iid else conditions.split(1)
        keys = [part.cpu().numpy().tobytes() for part in parts]
        unknown = {
            key: i
            for i, key in enumerate(keys)
            if key not in self._log_z or self._log_z[key][0] < num_samples
        }
        new = list(unknown.values())
        width = max(1, self.max_sampling_batch_size // num_samples)
        for some in (new[i : i + width] for i in range(0, len(new), width)):
            weights = self.importance_weights(
                torch.cat([parts[i] for i in some]), num_samples, x_is_iid
            )
            estimates = weights.log_z.tolist(), weights.log_z_se.tolist()
            for i, *estimate in zip(some, *estimates, strict=True):
                self._log_z[keys[i]] = (num_samples, *estimate)
        values = [self._log_z[key][1:] for key in keys]
        while len(self._log_z) > MAX_CACHED:
            self._log_z.popitem(last=False)
        log_z, log_z_se = conditions.new_tensor(values).reshape(-1, 2).unbind(1)
        return log_z, log_z_se

    def log_prob(
        self,
        theta: Tensor,
        x: Tensor | None = None,
        track_gradients: bool = False,
        num_normalizer_samples: int = 10_000,
    ) -> Tensor:
        """Return log densities in nats, shape `(N,)`, normalised by the estimated log Z.

        Args:
            theta: Parameters, shape `(N, D)`.
            x: One observation, or several of the same parameters; by default that of
                `set_default_x`.
            track_gradients: Whether the result is differentiable to `theta`.
            num_normalizer_samples: Draws that log Z is estimated from, see
                `log_evidence_ratio`.

        Raises:
            ValueError: If there is no observation, or several without a proper prior.
            RuntimeError: If no draw of the flow is inside of the prior.
        """
        conditions = self._conditions(self._x_else_default_x(x))
        log_z, _ = self.log_evidence_ratio(
            conditions, num_normalizer_samples, x_is_iid=len(conditions) > 1
        )
        self.potential_fn.set_x(conditions)
        return self.potential_fn(theta, track_gradients=track_gradients) - log_z

    @torch.no_grad()
    def log_prob_batched(
        self, theta: Tensor, x: Tensor, num_normalizer_samples: int = 10_000
    ) -> Tensor:
        """Return log densities in nats, shape `(*sample_shape, batch)`.

        Args:
            theta: Parameters, shape `(*sample_shape, batch, D)`.
            x: Observations, shape `(batch, *condition_shape)`.
            num_normalizer_samples: Draws that each log Z is estimated from.

        Raises:
            ValueError: If the batches differ.
            RuntimeError: If no draw of the flow is inside of the prior.
        """
        conditions = self._conditions(x)
        theta = torch.as_tensor(theta).to(conditions)
        if theta.ndim < 2 or theta.shape[-2] != len(conditions):
            raise ValueError(
                f"Expected `theta` of shape (*sample_shape, {len(conditions)}, D), for "
                f"as many observations, got {tuple(theta.shape)}."
            )
        log_z, _ = self.log_evidence_ratio(conditions, num_normalizer_samples)
        rows = theta.flatten(0, -3) if theta.ndim > 2 else theta.unsqueeze(0)
        log_prob = rows.new_empty(rows.shape[:2])
        for some, columns in blocks(
            len(log_prob), len(conditions), self.max_sampling_batch_size
        ):
            f = self.pair.energy(rows[some, columns], conditions[columns])
            log_prob[some, columns] = f - log_z[columns]
        inside = within_support(self.prior, rows.flatten(0, 1)).reshape(log_prob.shape)
        return torch.where(inside, log_prob, -torch.inf).reshape(theta.shape[:-1])

    def _conditions(self, x: Tensor) -> Tensor:
        x = reshape_to_batch_event(process_x(x), self.pair.energy.condition_shape)
        if not len(x):
            raise ValueError("Expected at least one observation `x`, got none.")
        return x.to(self._device)

    @property
    def _theta_shape(self) -> torch.Size:
        return self.pair.flow.input_shape
