"""Draws from any posterior in the chains they came in, with what is known of each."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import SeedSequence
from sbi.inference.posteriors import (
    EnsemblePosterior,
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
)
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.utils.sbiutils import seed_all_backends
from torch import Tensor

from sbi_jeffreys.data.arrays import check_finite

NUM_CHAINS = 4
"""Chains that independent draws are dealt into, as arviz's diagnostics expect several."""

CHAINS, INDEPENDENT = "Markov chains", "independent draws"


class Draws(NamedTuple):
    """Draws from a posterior.

    Attributes:
        theta: Shape `(chain, draw, D)`.
        stats: Statistics of each draw, by arviz's names, all of shape `(chain, draw)`.
        attrs: How they were made.
        stats_attrs: What is known of all draws together.
    """

    theta: np.ndarray
    stats: dict[str, np.ndarray]
    attrs: dict[str, Any]
    stats_attrs: dict[str, Any]


@contextmanager
def random_state(seed: int | None, stream: int = 0) -> Iterator[None]:
    """Seed Python, NumPy and torch, and leave their states as they were.

    Args:
        seed: Not negative; None does nothing. The generators are seeded by another
            number that follows from it, for what is analysed may come from this one.
        stream: Different random numbers for different streams.
    """
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark  # sbi sets these, too
    try:
        with torch.random.fork_rng():
            seed_all_backends(int(SeedSequence([seed, stream]).generate_state(1)[0]))
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        cudnn.deterministic, cudnn.benchmark = flags


def given_draws(samples: Tensor | np.ndarray) -> Draws:
    """Return samples of some posterior as draws.

    Args:
        samples: Shape `(chain, draw, D)`, or `(N, D)` for a single chain.

    Raises:
        ValueError: If the shape is another, or there are NaN or infinite values.
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
    """Sample a posterior, and evaluate its log density at the draws.

    Args:
        posterior: Any of `sbi`'s, or of this package's.
        x: Observations, `(n, *x)`: one, or several of the same parameters.
        num_samples: Draws in all, rounded up to a multiple of the chains.
        num_chains: By default, of MCMC the posterior's own number; else four.
        show_progress_bars: Whether to show progress.

    Raises:
        ValueError: If the posterior's samples have another shape, or are not finite.
    """
    x = x.to(posterior._device)
    is_mcmc = isinstance(posterior, MCMCPosterior)
    if num_chains is None:
        num_chains = posterior.num_chains if is_mcmc else NUM_CHAINS
    options: dict[str, Any] = {"show_progress_bars": show_progress_bars}
    if is_mcmc:
        options["num_chains"] = num_chains
    if isinstance(posterior, ImportanceSamplingPosterior):
        options["method"] = "sir"  # the other one returns weights beside the samples
    length = ceil(num_samples / num_chains)
    theta = posterior.sample((num_chains * length,), x=x, **options).detach()
    if theta.ndim != 2 or len(theta) != num_chains * length:
        raise ValueError(
            f"Expected samples of shape ({num_chains * length}, D) from "
            f"{type(posterior).__name__}, got {tuple(theta.shape)}."
        )
    if isinstance(posterior, EnsemblePosterior):  # its members' samples come in order
        theta = theta[torch.randperm(len(theta), device=theta.device)]
    check_finite(f"samples of {type(posterior).__name__}", theta)
    # All of a chain come before those of the next, in sbi's samplers as in Pyro.
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
    density, stats_attrs = _densities(posterior, theta, x)
    stats |= {
        name: values.cpu().numpy().reshape(chains.shape[:2])
        for name, values in density.items()
    }
    return Draws(chains, stats, attrs, stats_attrs)


def _pyro_stats(
    posterior: MCMCPosterior, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return what Pyro's HMC and NUTS tell of their draws; nothing of other samplers."""
    sampler = posterior.posterior_sampler
    if not hasattr(sampler, "diagnostics"):
        return {}
    told = sampler.diagnostics()
    diverging = np.zeros(shape, dtype=bool)
    for chain, steps in enumerate(told["divergences"].values()):
        diverging[chain, np.array(steps, dtype=int) // posterior.thin] = True
    rates = [float(rate) for rate in told["acceptance rate"].values()]
    acceptance_rate = np.broadcast_to(np.array(rates)[:, None], shape)
    return {"diverging": diverging, "acceptance_rate": acceptance_rate}


@torch.no_grad()
def _densities(
    posterior: NeuralPosterior, theta: Tensor, x: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return log densities and weights at draws `(N, D)`, in nats, and what they say."""
    normalised = is_normalised(posterior)
    evaluate = posterior.log_prob if normalised else posterior.potential
    stats: dict[str, Tensor] = {}
    attrs: dict[str, Any] = {"lp_is_normalised": normalised}
    if len(x) == 1 and knows_both_models(posterior):
        flow, energy = posterior.pair.flow, posterior.pair.energy
        rows = theta.unsqueeze(1)
        stats["log_weight"] = energy(rows, x) - flow.log_prob(rows, x)
        attrs |= agreement(posterior, x)
    # Last, for it may remember its normaliser, and then draws no random numbers.
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
    """Return whether the posterior can compare a flow with an energy."""
    return getattr(posterior, "pair", None) is not None


def agreement(posterior: NeuralPosterior, x: Tensor) -> dict[str, Any]:
    """Return what `posterior.agreement(x)` says of one observation, `(1, *x)`."""
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
