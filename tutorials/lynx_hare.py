# %% [markdown]
# # Lynx and hare
#
# The Hudson's Bay Company counted the pelts that it bought each year. What do the counts
# from 1900 to 1920 say about how hares grow and how lynx hunt them?
#
# The data are real and the model has eight parameters. There is one observation, and we
# allow 1,000 simulations. The model also has a likelihood, so MCMC gives a reference for
# the exact posterior. We compare three ways to spend the simulations:
#
# - **JNPE in rounds**: each round simulates where the posterior of the round before is;
# - **JNPE, amortised**: all parameters come from the prior;
# - **NPE** of sbi, amortised, on the same simulations as the second.
#
#     python tutorials/lynx_hare.py
#
# The script takes about four minutes on two cores. It writes its results into
# `results/lynx_hare`:
#
# - a summary with means, intervals, distances from MCMC and the record of the rounds;
# - the draws of all four posteriors as netCDF files for arviz;
# - four figures.

# %%
import math
import os
import time
from pathlib import Path

import emcee
import matplotlib.pyplot as plt
import numpy as np
import torch
from joblib import Parallel, delayed
from sbi.inference import NPE
from sbi.utils import MultipleIndependent
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal, constraints
from torchdiffeq import odeint

from sbi_jeffreys import JNPE, compare, plots, run_rounds, to_inference_data
from sbi_jeffreys.plots.style import color_of

FAST = bool(os.environ.get("TUTORIAL_FAST"))  # a quick look; its numbers mean little
NUM_SIMULATIONS, MCMC_STEPS = (200, 100) if FAST else (1000, 2500)
TRAINING = {"max_num_epochs": 3} if FAST else {}
SEED = 0
OUTPUT = Path("results/lynx_hare")
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)

# %% [markdown]
# ## The data
#
# The counts are thousands of pelts. We use their logarithms.

# %%
FOLDER = Path("tutorials") if Path("tutorials").exists() else Path()  # in a notebook
PELTS = torch.from_numpy(np.loadtxt(FOLDER / "lynx_hare.csv", delimiter=",")).float()
YEARS, HARE, LYNX = PELTS.T
X_O = torch.cat([HARE, LYNX]).log()

# %% [markdown]
# ## The model
#
# Hares u and lynx v follow the Lotka-Volterra equations
#
#     du/dt = (α − β v) u,        dv/dt = (−γ + δ u) v,
#
# and each count has a log-normal error. The eight parameters are four rates, both
# populations in 1900, and both errors. Parameters and priors follow Carpenter's Stan case
# study, "Predator-Prey Population Dynamics: the Lotka-Volterra model in Stan".

# %%
NAMES = ["α", "β", "γ", "δ", "hare 1900", "lynx 1900", "σ hare", "σ lynx"]
STAN_MEANS = [0.55, 0.028, 0.80, 0.024, 34.0, 6.0, 0.25, 0.25]
STEP = 0.2  # years; the error of log populations near the posterior is below 0.01
FLOOR = math.log(1e-3)  # thousands: the smallest count is one pelt


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
    """Map parameters `(N, 8)` to log populations `(N, 42)`, hares before lynx."""
    growth = torch.stack([theta[:, 0], -theta[:, 2]])
    loss = torch.stack([-theta[:, 1], theta[:, 3]])

    def slope(_: Tensor, state: Tensor) -> Tensor:
        return growth + loss * state.flip(0).clamp(max=12.0).exp()

    start = theta[:, 4:6].log().T
    years = YEARS - YEARS[0]
    path = odeint(slope, start, years, method="rk4", options={"step_size": STEP})
    return path.permute(2, 1, 0).flatten(1)


def simulate(theta: Tensor) -> Tensor:
    """Map parameters `(N, 8)` to log counts in thousands `(N, 42)`, hares first."""
    scale = theta[:, 6:].repeat_interleave(len(YEARS), dim=1)
    counts = log_populations(theta) + scale * torch.randn(len(theta), 2 * len(YEARS))
    return counts.clamp(min=FLOOR)


# %% [markdown]
# ## The reference, in another process
#
# MCMC uses the exact likelihood, which a simulator usually does not offer. It runs in
# another process during the trainings.


# %%
def log_posterior(log_theta: np.ndarray) -> np.ndarray:
    """Map log parameters `(N, 8)` to their exact log posterior density `(N,)`."""
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


mcmc = Parallel(n_jobs=2, return_as="generator")(
    [delayed(run_mcmc)(MCMC_STEPS, seed=SEED)]
)

# %% [markdown]
# ## Rounds
#
# `run_rounds` takes a new trainer, the simulator and the observation. Each round trains
# on all simulations so far, samples the posterior, fits a density to the samples, widens
# it, and simulates from that. With `path="..."` every simulation would be on disk before
# it is used, and a run that was killed would go on where it was.

# %%
prior = make_prior()
seconds = {}
start = time.perf_counter()
rounds = run_rounds(
    JNPE(prior, show_progress_bars=False),
    simulate,
    X_O,
    NUM_SIMULATIONS,
    num_rounds=2 if FAST else None,
    seed=SEED,
    training=TRAINING,
    show_progress_bars=False,
)
seconds["JNPE in rounds"] = time.perf_counter() - start
print(rounds)
figure = plots.plot_narrowing(rounds, NAMES)
figure.savefig(OUTPUT / "narrowing.png", dpi=110)
figure

# %% [markdown]
# The KL divergence tells how much a round changed the proposal. It falls once the rounds
# have found the region of the posterior. The effective sample size tells how well the
# flow and the energy agree at the observation. Where k̂ exceeds 0.7, the flow of that
# round misses a part of the energy, and the next round repairs that.

# %%
figure = plots.plot_rounds(rounds)
figure.savefig(OUTPUT / "rounds.png", dpi=110)
figure

# %% [markdown]
# ## The same number of simulations from the prior

# %%
torch.manual_seed(SEED)
theta = prior.sample((NUM_SIMULATIONS,))
x = simulate(theta)
trainers = {
    "JNPE": JNPE(prior, show_progress_bars=False),
    "NPE": NPE(prior, show_progress_bars=False),
}
for name, trainer in trainers.items():
    start = time.perf_counter()
    trainer.append_simulations(theta, x).train(**TRAINING)
    seconds[name] = time.perf_counter() - start

# %% [markdown]
# ## Four posteriors side by side
#
# In the second table, look at the C2ST. It is the accuracy with which a random forest
# separates samples of a posterior from samples of MCMC. 0.5 means that it cannot separate
# them, and 1 means that it always can.
#
# The prior is broad, and most of its simulations are far from the data. So no amortised
# method finds the small region that MCMC finds. The rounds do.

# %%
(chains,) = mcmc  # wait for the other process
data = to_inference_data(
    {
        "MCMC": chains[:, ::10],
        "NPE": trainers["NPE"].build_posterior(),
        "JNPE, amortised": trainers["JNPE"].build_posterior(sample_with="energy"),
        "JNPE in rounds": rounds.posterior,
    },
    X_O,
    num_samples=500 if FAST else 2000,
    parameter_names=NAMES,
    simulator=simulate,
    seed=SEED,
    show_progress_bars=False,
)
table = "\n\n".join(
    [
        str(compare(data, reference="MCMC", seed=SEED)),
        "Means in Stan's case study: "
        + ", ".join(f"{n} {m:g}" for n, m in zip(NAMES, STAN_MEANS, strict=True)),
        str(rounds),
        f"Flow and energy at the observation:\n{rounds.posterior.agreement(X_O)}",
        "Seconds: " + ", ".join(f"{seconds[name]:.0f} ({name})" for name in seconds),
    ]
)
print(table)
(OUTPUT / "summary.txt").write_text(table + "\n")
for name, each in data.items():
    each.to_netcdf(str(OUTPUT / f"{name.replace(', ', '_').replace(' ', '_')}.nc"))
figure = plots.plot_densities(data)
figure.savefig(OUTPUT / "densities.png", dpi=110)
figure

# %% [markdown]
# ## What they predict for the counts
#
# About nine of ten counts (points) should lie inside the bands, and the bands should
# follow the cycle. A posterior that is too wide predicts cycles with any phase, and its
# bands are broad.

# %%
figure, axes = plt.subplots(2, 1, sharex=True, figsize=(9, 7), layout="constrained")
for name, each in data.items():
    counts = np.exp(each["posterior_predictive"]["x"].values.reshape(-1, 2, len(YEARS)))
    bands = np.quantile(counts, (0.05, 0.5, 0.95), axis=0).swapaxes(0, 1)
    for axis, (low, middle, high) in zip(axes, bands, strict=True):
        axis.plot(YEARS, middle, color=color_of(name), label=name)
        axis.fill_between(YEARS, low, high, color=color_of(name), alpha=0.15)
for axis, animal, counts in zip(axes, ("hares", "lynx"), (HARE, LYNX), strict=True):
    axis.plot(YEARS, counts, "ko", label="pelts counted")
    axis.set(ylabel=f"{animal} (thousands of pelts)", ylim=(0, 2.2 * counts.max().item()))
axes[0].legend(title="median and 90 % of predictions")
axes[1].set(xlabel="year", xticks=range(1900, 1921, 5))
figure.savefig(OUTPUT / "predictive.png", dpi=110)

# %%
print(f"Figures are in {OUTPUT}")

# %% [markdown]
# ## How to go on
#
# `run_rounds` simulates in parallel with `num_workers`, and survives simulations that
# raise, return NaN or, with `timeout`, hang. You can write its loop by hand: sample a
# posterior with a default x, simulate, append the simulations with `proposal=posterior`,
# and train again.
