"""Draws from any posterior, kept in their chains, with statistics of each draw."""

from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from sbi.inference.posteriors import (
    EnsemblePosterior,
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
)
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.utils.sbiutils import ImproperEmpirical
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys._sbi import device_of
from sbi_jeffreys.data.arrays import check_finite

NUM_CHAINS = 4
"""Independent draws are split into this many chains, as arviz expects several."""

CHAINS, INDEPENDENT = "Markov chains", "independent draws"


class Draws(NamedTuple):
    """Draws from a posterior.

    Attributes:
        theta: Shape `(chain, draw, D)`.
        stats: Statistics of each draw under arviz's names, each of shape
            `(chain, draw)`.
        attrs: How the draws were made.
        stats_attrs: Statistics of all draws together.
        log_prior: Log densities of the prior in nats, `(chain, draw)`; None if the
            posterior has no proper prior.
        log_ratio: Log density of the posterior minus `log_prior`, in nats,
            `(chain, draw)`, or `(chain, draw, n)` for each of n observations; None
            without a proper prior. It is a log likelihood up to a constant.
    """

    theta: np.ndarray
    stats: dict[str, np.ndarray]
    attrs: dict[str, Any]
    stats_attrs: dict[str, Any]
    log_prior: np.ndarray | None = None
    log_ratio: np.ndarray | None = None


class FixedSamples:
    """Samples that replace a posterior or proposal which `sbi` would sample."""

    def __init__(self, samples: Tensor) -> None:
        """
        Args:
            samples: What both methods return, whatever is asked for.
        """
        self.samples = samples

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the samples."""
        return self.samples

    def sample_batched(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the samples."""
        return self.samples


def given_draws(samples: Tensor | np.ndarray) -> Draws:
    """Return samples from any source as draws.

    Args:
        samples: Shape `(chain, draw, D)`, or `(N, D)` for a single chain.

    Raises:
        ValueError: If the shape is wrong or values are NaN or infinite.
    """
    theta = torch.as_tensor(samples).detach().cpu()
    if theta.ndim not in (2, 3) or not theta.numel():
        raise ValueError(
            "Expected samples of shape (N, D) or (chain, draw, D), got "
            f"{tuple(theta.shape)}."
        )
    check_finite("samples", theta.flatten(0, -2))
    attrs = {"sampler": CHAINS if theta.ndim == 3 else INDEPENDENT}
    return Draws(theta.numpy().reshape(-1, *theta.shape[-2:]), {}, attrs, {})


def draw(
    posterior: NeuralPosterior,
    x: Tensor,
    num_samples: int,
    num_chains: int | None = None,
    show_progress_bars: bool = True,
) -> Draws:
    """Sample a posterior and evaluate its log density at the draws.

    Args:
        posterior: Any posterior of `sbi` or of this package.
        x: One observation, or several of the same parameters, shape `(n, *x)`.
        num_samples: Total number of draws, rounded up to a multiple of the chains.
        num_chains: Number of chains. By default, MCMC uses the posterior's own number,
            and all others use four.
        show_progress_bars: Whether to show progress.

    Raises:
        ValueError: If the posterior's samples have a wrong shape or are not finite.
    """
    x = x.to(device_of(posterior))
    is_mcmc = isinstance(posterior, MCMCPosterior)
    if num_chains is None:
        num_chains = posterior.num_chains if is_mcmc else NUM_CHAINS
    options: dict[str, Any] = {"show_progress_bars": show_progress_bars}
    if is_mcmc:
        options["num_chains"] = num_chains
    if isinstance(posterior, ImportanceSamplingPosterior):
        options["method"] = "sir"  # "importance" returns weights, too
    length = ceil(num_samples / num_chains)
    theta = posterior.sample((num_chains * length,), x=x, **options).detach()
    if theta.ndim != 2 or len(theta) != num_chains * length:
        raise ValueError(
            f"Expected samples of shape ({num_chains * length}, D) from "
            f"{type(posterior).__name__}, got {tuple(theta.shape)}."
        )
    if isinstance(posterior, EnsemblePosterior):  # samples come member by member
        theta = theta[torch.randperm(len(theta), device=theta.device)]
    check_finite(f"samples of {type(posterior).__name__}", theta)
    # sbi and Pyro return the draws chain by chain.
    chains = theta.cpu().numpy().reshape(num_chains, length, -1)
    stats: dict[str, np.ndarray] = {}
    attrs: dict[str, Any] = {"sampler": INDEPENDENT}
    if is_mcmc:
        attrs = {
            "sampler": CHAINS,
            "mcmc_method": posterior.method,
            "warmup_steps": posterior.warmup_steps,
            "thin": posterior.thin,
        }
        stats = _pyro_stats(posterior, chains.shape[:2])
    attrs["num_simulations"] = getattr(posterior, "num_simulations", None)
    several = None if len(x) == 1 else _for_each_observation(posterior, theta, x)
    density, stats_attrs = _densities(posterior, theta, x)

    def by_chain(values: Tensor) -> np.ndarray:
        """Values `(N,)` or `(N, 1)` as `(chain, draw)`, and `(N, n)` with an axis."""
        per_draw = values.shape[1:] if values.numel() > len(theta) else ()
        return values.cpu().numpy().reshape(*chains.shape[:2], *per_draw)

    stats |= {name: by_chain(values) for name, values in density.items()}
    prior = proper_prior_of(posterior)
    if prior is None:
        return Draws(chains, stats, attrs, stats_attrs)
    log_prior = prior.log_prob(theta).detach().reshape(len(theta), 1)
    log_posterior = density["lp"].unsqueeze(1) if several is None else several
    inside = log_prior > -torch.inf
    log_ratio = torch.where(inside, log_posterior - log_prior, -torch.inf)
    return Draws(
        *(chains, stats, attrs, stats_attrs),
        log_prior=by_chain(log_prior),
        log_ratio=by_chain(log_ratio),
    )


def _pyro_stats(
    posterior: MCMCPosterior, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return statistics of Pyro's HMC and NUTS; nothing for other samplers."""
    sampler = posterior.posterior_sampler
    if not hasattr(sampler, "diagnostics"):
        return {}
    diagnostics = sampler.diagnostics()
    diverging = np.zeros(shape, dtype=bool)
    for chain, steps in enumerate(diagnostics["divergences"].values()):
        diverging[chain, np.array(steps, dtype=int) // posterior.thin] = True
    rates = [float(rate) for rate in diagnostics["acceptance rate"].values()]
    acceptance_rate = np.broadcast_to(np.array(rates)[:, None], shape)
    return {"diverging": diverging, "acceptance_rate": acceptance_rate}


def proper_prior_of(posterior: NeuralPosterior) -> Distribution | None:
    """Return the prior of a posterior, or None where it was trained without one."""
    prior = getattr(posterior.potential_fn, "prior", None)
    return None if isinstance(prior, ImproperEmpirical) else prior


@torch.no_grad()
def _for_each_observation(posterior: NeuralPosterior, theta: Tensor, x: Tensor) -> Tensor:
    """Return log densities given each of n observations, up to constants, `(N, n)`."""
    return torch.stack([posterior.potential(theta, x=one) for one in x.split(1)], 1)


@torch.no_grad()
def _densities(
    posterior: NeuralPosterior, theta: Tensor, x: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return log densities and log weights at draws `(N, D)` in nats, and attributes."""
    normalised = is_normalised(posterior)
    evaluate = posterior.log_prob if normalised else posterior.potential
    stats: dict[str, Tensor] = {}
    attrs: dict[str, Any] = {"lp_is_normalised": normalised}
    if len(x) == 1 and knows_both_models(posterior):
        flow, energy = posterior.pair.flow, posterior.pair.energy
        rows = theta.unsqueeze(1)
        stats["log_weight"] = energy(rows, x) - flow.log_prob(rows, x)
        attrs |= agreement_attrs(posterior, x)
    # Evaluated last: a normaliser that is cached would draw no random numbers.
    stats["lp"] = evaluate(theta, x=x)
    return stats, attrs


def is_normalised(posterior: NeuralPosterior) -> bool:
    """Return whether `log_prob` of the posterior is a normalised log density."""
    if isinstance(posterior, EnsemblePosterior):
        members = posterior.posteriors
        same = all(isinstance(member, type(members[0])) for member in members)
        return same and all(map(is_normalised, members))
    return not isinstance(
        posterior, MCMCPosterior | RejectionPosterior | ImportanceSamplingPosterior
    )


def knows_both_models(posterior: NeuralPosterior) -> bool:
    """Return whether the posterior has both a flow and an energy."""
    return getattr(posterior, "pair", None) is not None


def agreement_attrs(posterior: NeuralPosterior, x: Tensor) -> dict[str, Any]:
    """Return the numbers of `posterior.agreement(x)` for one observation `(1, *x)`."""
    report = posterior.agreement(x)
    numbers = {
        name: float(getattr(report, name)[0])
        for name in ("kl_flow_energy", "kl_flow_energy_se", "ess", "pareto_k", "log_z")
    }
    p_value = report.x_p_value
    return numbers | {
        "x_p_value": None if p_value is None else float(p_value[0]),
        "verdict": report.verdicts[0],
    }
