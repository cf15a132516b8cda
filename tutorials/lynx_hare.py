"""Lynx and hare: infer a predator-prey model from the pelts of 1900 to 1920.

    python tutorials/lynx_hare.py

The Hudson's Bay Company counted the pelts it bought each year. Assume that hares u and
lynx v follow the Lotka-Volterra equations

    du/dt = (α − β v) u,        dv/dt = (−γ + δ u) v,

and that each count has a log-normal error. The parameters and their priors are those of
Carpenter's Stan case study, "Predator-Prey Population Dynamics: the Lotka-Volterra model
in Stan". The posterior is estimated four times: by sbi's NPE, by JNPE's flow and by that
flow corrected by JNPE's energy, from the same simulations; and by MCMC with the exact
likelihood, which a simulator would not offer.

Writes into `results/lynx_hare`: a table of means, intervals and distances from MCMC; what
flow and energy make of the observation; the draws of all four, for arviz, in netCDF
files; and four figures.
"""

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import emcee
import numpy as np
import torch
from matplotlib.figure import Figure
from sbi.inference import NPE
from sbi.utils import MultipleIndependent
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal, constraints
from torchdiffeq import odeint

from sbi_jeffreys import JNPE, compare, plots, to_inference_data
from sbi_jeffreys.plots.style import color_of

PELTS = torch.as_tensor(
    np.loadtxt(Path(__file__).with_suffix(".csv"), delimiter=","), dtype=torch.float32
)
YEARS, HARE, LYNX = PELTS.T
X_O = torch.cat([HARE, LYNX]).log()
NAMES = ["α", "β", "γ", "δ", "hare 1900", "lynx 1900", "σ hare", "σ lynx"]
STAN_MEANS = [0.55, 0.028, 0.80, 0.024, 34.0, 6.0, 0.25, 0.25]
STEP = 0.2  # years; log populations then err by less than 0.01 near the posterior
FLOOR = math.log(1e-3)  # pelts are counted in thousands, so one pelt is the least


class PositiveNormal(Distribution):
    """A normal distribution truncated to positive values."""

    support = constraints.positive

    def __init__(self, loc: float, scale: float) -> None:
        """Truncate Normal(loc, scale)."""
        super().__init__(batch_shape=torch.Size((1,)), validate_args=False)
        self.normal = Normal(torch.tensor([loc]), torch.tensor([scale]))
        self.below = self.normal.cdf(torch.zeros(1))

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Return samples of shape `(*sample_shape, 1)`."""
        uniform = torch.rand(*sample_shape, 1).clamp(1e-6, 1 - 1e-6)
        return self.normal.icdf(self.below + uniform * (1 - self.below))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities, of the shape of `value`."""
        inside = self.normal.log_prob(value) - torch.log1p(-self.below)
        return torch.where(value > 0, inside, -torch.inf)


def make_prior() -> MultipleIndependent:
    """Return the prior over the eight parameters."""
    rate, interaction = (1.0, 0.5), (0.05, 0.05)
    population = LogNormal(torch.tensor([math.log(10.0)]), torch.ones(1))
    noise = LogNormal(-torch.ones(1), torch.ones(1))
    return MultipleIndependent(
        [PositiveNormal(*p) for p in (rate, interaction, rate, interaction)]
        + [population, population, noise, noise],
        validate_args=False,
    )


def log_populations(theta: Tensor) -> Tensor:
    """Solve the equations for log hares and lynx; `(N, 8)` to `(N, 42)`."""
    growth = torch.stack([theta[:, 0], -theta[:, 2]])
    loss = torch.stack([-theta[:, 1], theta[:, 3]])

    def slope(_: Tensor, state: Tensor) -> Tensor:
        return growth + loss * state.flip(0).clamp(max=12.0).exp()

    start = theta[:, 4:6].log().T
    years = YEARS - YEARS[0]
    path = odeint(slope, start, years, method="rk4", options={"step_size": STEP})
    return path.permute(2, 1, 0).flatten(1)


def simulate(theta: Tensor) -> Tensor:
    """Return log counts in thousands, hares then lynx, `(N, 42)`."""
    scale = theta[:, 6:].repeat_interleave(len(YEARS), dim=1)
    counts = log_populations(theta) + scale * torch.randn(len(theta), 2 * len(YEARS))
    return counts.clamp(min=FLOOR)


def log_posterior(log_theta: np.ndarray) -> np.ndarray:
    """Return the exact log posterior density of log parameters, `(N, 8)` to `(N,)`."""
    theta = torch.as_tensor(np.exp(log_theta), dtype=torch.float32)
    with torch.no_grad():
        scale = theta[:, 6:].repeat_interleave(len(YEARS), dim=1)
        likelihood = Normal(log_populations(theta), scale, validate_args=False)
        log_prob = likelihood.log_prob(X_O).sum(-1) + make_prior().log_prob(theta)
        log_prob += theta.log().sum(-1)  # the Jacobian of the logarithm
    return log_prob.nan_to_num(-np.inf, -np.inf, -np.inf).double().numpy()


def run_mcmc(num_steps: int, num_walkers: int = 100, seed: int = 0) -> np.ndarray:
    """Return MCMC samples from the exact posterior, `(walker, step, 8)`."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(seed)
    start = np.log(STAN_MEANS) + 0.1 * generator.standard_normal((num_walkers, 8))
    sampler = emcee.EnsembleSampler(num_walkers, 8, log_posterior, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(start, num_steps, skip_initial_state_check=True)
    return np.exp(sampler.get_chain(discard=num_steps // 4)).swapaxes(0, 1)


def main() -> None:
    """Infer the parameters four times, compare, and write table and figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-simulations", type=int, default=2000)
    parser.add_argument("--mcmc-steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/lynx_hare"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        reference = pool.submit(run_mcmc, arguments.mcmc_steps, seed=arguments.seed)
        torch.set_num_threads(1)
        torch.manual_seed(arguments.seed)
        prior = make_prior()
        theta = prior.sample((arguments.num_simulations,))
        x = simulate(theta)
        trainers, seconds = {}, {}
        for name, trainer in (("JNPE", JNPE(prior)), ("NPE", NPE(prior))):
            begin = time.perf_counter()
            trainer.append_simulations(theta, x).train()
            trainers[name], seconds[name] = trainer, time.perf_counter() - begin
        print("\nwaiting for MCMC ...")
        chains = reference.result()

    npe, jnpe = trainers["NPE"], trainers["JNPE"]
    corrected = jnpe.build_posterior(sample_with="energy")
    data = to_inference_data(
        {
            "MCMC": chains[:, ::10],
            "NPE": npe.build_posterior(),
            "JNPE, flow": jnpe.build_posterior(),
            "JNPE, corrected": corrected,
        },
        X_O,
        num_samples=5000,
        parameter_names=NAMES,
        simulator=simulate,
        seed=arguments.seed,
        show_progress_bars=False,
    )
    agreement = corrected.agreement(X_O)
    table = "\n\n".join(
        [
            str(compare(data, reference="MCMC", seed=arguments.seed)),
            "Means in Stan's case study: "
            + ", ".join(f"{n} {m:g}" for n, m in zip(NAMES, STAN_MEANS, strict=True)),
            f"Flow and energy at the observation:\n{agreement}",
            "Trained in "
            + ", ".join(f"{seconds[name]:.0f} s ({name})" for name in seconds),
        ]
    )
    print(table)
    (arguments.output / "summary.txt").write_text(table + "\n")
    for name, each in data.items():
        each.to_netcdf(str(arguments.output / f"{name.replace(', ', '_')}.nc"))
    figures = {
        "densities": plots.plot_densities(data),
        "predictive": plot_predictive(data),
        "agreement": plots.plot_agreement(agreement),
        "training": plots.plot_training(jnpe.summary),
    }
    for name, figure in figures.items():
        figure.savefig(arguments.output / f"{name}.png", dpi=110)
    print(f"{time.perf_counter() - start:.0f} s; figures are in {arguments.output}")


def plot_predictive(data: dict[str, Any]) -> Figure:
    """Draw what the posteriors predict for the counts, with the counts."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for name, each in data.items():
        counts = np.exp(
            each["posterior_predictive"]["x"].values.reshape(-1, 2, len(YEARS))
        )
        bands = np.quantile(counts, (0.05, 0.5, 0.95), axis=0).swapaxes(0, 1)
        for axis, (low, middle, high) in zip(axes, bands, strict=True):
            axis.plot(YEARS, middle, color=color_of(name), label=name)
            axis.fill_between(YEARS, low, high, color=color_of(name), alpha=0.15)
    for axis, animal, counts in zip(axes, ("hares", "lynx"), (HARE, LYNX), strict=True):
        axis.plot(YEARS, counts, "ko", label="pelts counted")
        axis.set(
            ylabel=f"{animal} (thousands of pelts)", ylim=(0, 2.2 * counts.max().item())
        )
    axes[0].legend(title="median and 90 % of predictions")
    axes[1].set_xlabel("year")
    return figure


if __name__ == "__main__":
    main()
