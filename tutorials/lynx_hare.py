"""Lynx and hare: infer a predator-prey model from the pelts of 1900 to 1920.

    python tutorials/lynx_hare.py

The Hudson's Bay Company counted the pelts it bought each year. Assume that hares u and
lynx v follow the Lotka-Volterra equations

    du/dt = (α − β v) u,        dv/dt = (−γ + δ u) v,

and that each count has a log-normal error. The parameters and their priors are those of
Carpenter's Stan case study, "Predator-Prey Population Dynamics: the Lotka-Volterra model
in Stan". The posterior is estimated three times: by JNPE and by sbi's NPE from the same
simulations, and by MCMC with the exact likelihood, which a simulator would not offer.

Writes a table of posterior means and intervals, distances from the MCMC reference, and
three figures into `results/lynx_hare`.
"""

import argparse
import math
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import arviz as az
import emcee
import matplotlib
import numpy as np
import torch
from sbi.analysis import pairplot
from sbi.inference import NPE
from sbi.utils import MultipleIndependent
from sbi.utils.metrics import c2st
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal, constraints
from torchdiffeq import odeint

from sbi_jeffreys import JNPE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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
    """Infer the parameters three times, compare, and write table and figures."""
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

    samples = {"MCMC": torch.as_tensor(chains.reshape(-1, 8), dtype=torch.float32)}
    chosen = np.random.default_rng(0).permutation(len(samples["MCMC"]))[:5000]
    samples["MCMC"] = samples["MCMC"][chosen]
    for name, trainer in trainers.items():
        posterior = trainer.build_posterior()
        samples[name] = posterior.sample((5000,), x=X_O, show_progress_bars=False)

    table = summarize(samples, chains, seconds)
    print(table)
    (arguments.output / "summary.txt").write_text(table)
    plot_corner(samples, arguments.output / "corner.png")
    plot_predictive(samples, arguments.output / "predictive.png")
    plot_training(trainers["JNPE"].summary, arguments.output / "training.png")
    print(f"{time.perf_counter() - start:.0f} s; figures are in {arguments.output}")


def summarize(
    samples: dict[str, Tensor], chains: np.ndarray, seconds: dict[str, float]
) -> str:
    """Return means, 94 % intervals, chain diagnostics and distances from MCMC."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = az.from_dict({"theta": chains[:, ::10]})
        ess = np.asarray(az.ess(data)["theta"]).min()
        rhat = np.asarray(az.rhat(data)["theta"]).max()
    width = 25
    lines = [f"{'':10}" + "".join(f"{name:>{width}}" for name in samples) + "      Stan"]
    for i, name in enumerate(NAMES):
        cells = []
        for draws in samples.values():
            low, high = np.quantile(draws[:, i], (0.03, 0.97))
            cells.append(f"{draws[:, i].mean():.3g} [{low:.3g}, {high:.3g}]")
        row = "".join(f"{cell:>{width}}" for cell in cells)
        lines.append(f"{name:10}{row}{STAN_MEANS[i]:>10.3g}")
    exact = samples["MCMC"]
    lines += ["", f"MCMC: least ESS {ess:.0f}, largest R-hat {rhat:.3f}", ""]
    lines.append("distance from MCMC   C2ST (random forest)   mean shift   sd ratio")
    for name, duration in seconds.items():
        draws = samples[name]
        accuracy = float(c2st(exact, draws))
        shift = ((draws.mean(0) - exact.mean(0)) / exact.std(0)).abs().mean()
        ratio = (draws.std(0) / exact.std(0)).log().mean().exp()
        lines.append(
            f"{name:21}{accuracy:<23.3f}{shift:<13.2f}{ratio:<11.2f}"
            f"trained in {duration:.0f} s"
        )
    lines.append(
        "(C2ST 0.5 is perfect; shift in MCMC standard deviations, mean of eight)"
    )
    return "\n".join(lines) + "\n"


COLORS = {"MCMC": "0.3", "NPE": "tab:orange", "JNPE": "tab:blue"}


def plot_corner(samples: dict[str, Tensor], path: Path) -> None:
    """Draw the marginals and pairs of the three posteriors."""
    low = torch.stack([d.quantile(0.001, 0) for d in samples.values()]).amin(0)
    high = torch.stack([d.quantile(0.999, 0) for d in samples.values()]).amax(0)
    figure, _ = pairplot(
        list(samples.values()),
        limits=torch.stack([low, high], -1).tolist(),
        labels=NAMES,
        diag="kde",
        upper="contour",
        diag_kwargs=[{"mpl_kwargs": {"color": COLORS[name]}} for name in samples],
        upper_kwargs=[
            {"mpl_kwargs": {"colors": COLORS[name]}, "levels": [0.5, 0.9]}
            for name in samples
        ],
        figsize=(14, 14),
    )
    handles = [plt.Line2D([], [], color=COLORS[name], label=name) for name in samples]
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.15, 0.15))
    figure.savefig(path, dpi=90)
    plt.close(figure)


def plot_predictive(samples: dict[str, Tensor], path: Path) -> None:
    """Draw what the posteriors predict for the counts, with the counts."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 7), sharex=True)
    for name, draws in samples.items():
        counts = simulate(draws[:2000]).exp()
        bands = counts.quantile(torch.tensor([0.05, 0.5, 0.95]), 0).view(3, 2, -1)
        for axis, (low, middle, high) in zip(axes, bands.unbind(1), strict=True):
            axis.plot(YEARS, middle, color=COLORS[name], label=name)
            axis.fill_between(YEARS, low, high, color=COLORS[name], alpha=0.15)
    for axis, animal, counts in zip(axes, ("hares", "lynx"), (HARE, LYNX), strict=True):
        axis.plot(YEARS, counts, "ko", label="pelts counted")
        axis.set(
            ylabel=f"{animal} (thousands of pelts)", ylim=(0, 2.2 * counts.max().item())
        )
    axes[0].legend(title="median and 90 % of predictions")
    axes[1].set_xlabel("year")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_training(summary: dict[str, list], path: Path) -> None:
    """Draw losses, multipliers and agreement over the epochs of JNPE's training."""
    figure, (losses, multipliers, agreement) = plt.subplots(3, 1, figsize=(9, 9))
    losses.plot(summary["training_loss"], color="0.6", label="flow, training")
    losses.plot(summary["validation_loss"], label="flow, held out")
    losses.plot(summary["validation_energy_loss"], label="energy, held out")
    top = np.quantile(summary["validation_loss"], 0.9) + 1
    losses.set(ylabel="negative log-likelihood (nats)", ylim=(None, top))
    multipliers.plot(summary["multipliers"])
    multipliers.set_ylabel("multipliers")
    multipliers.legend(["KL(data | flow)", "KL(flow | energy)", "KL(data | energy)"])
    agreement.plot(summary["validation_ess"], label="ESS / N")
    agreement.plot(summary["validation_flow_to_energy"], label="KL(flow | energy), nats")
    agreement.set(xlabel="epoch", ylim=(0, 1))
    for axis in (losses, agreement):
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
