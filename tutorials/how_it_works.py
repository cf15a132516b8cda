# %% [markdown]
# # How it works
#
# Three divergences, three multipliers, and a reference for an entropy that nobody knows.
# On an example with one parameter where everything can be computed by hand:
#
# $\theta \sim N(0, 1)$, $x = \theta + N(0, 1)$, so $\pi(\theta | x) = N(x / 2, 1 / 2)$,
# whose entropy is $H = \frac12 \log(\pi e) = 1.072$ nats whatever x.
#
#     python tutorials/how_it_works.py
#
# About two minutes on two cores; figures go to `results/tutorials`.

# %%
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.distributions import Independent, Normal

from sbi_jeffreys import JNPE, Conditional, plots
from sbi_jeffreys.objective.divergences import jeffreys_divergences
from sbi_jeffreys.objective.multipliers import ResilientMultipliers

FAST = bool(os.environ.get("TUTORIAL_FAST"))  # a quick look; its numbers mean little
OUTPUT = Path("results/tutorials/how_it_works")
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)

ENTROPY = 0.5 * math.log(math.pi * math.e)
prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)


def simulate(num):
    """Return parameters and simulations, each of shape `(num, 1)`."""
    theta = prior.sample((num,))
    return theta, theta + torch.randn(num, 1)


# %% [markdown]
# ## Three divergences
#
# A flow p and an energy model $q \propto e^f$ are trained together:
#
# - D1 = KL(π ‖ p): the flow fits the data;
# - D2 = KL(p ‖ q): the flow agrees with the energy, on the flow's own samples, of which
#   there is no end;
# - D3 = KL(π ‖ q): the energy fits the data.
#
# Take Gaussians that are off on purpose, $p = N(x/2 + 0.3, 0.8)$ and $q = N(x/2, 0.7)$,
# and compare the estimates on a batch with the divergences of Gaussians from the book.


# %%
class GaussianFlow(Conditional):
    """p = N(x / 2 + 0.3, 0.8)."""

    def __init__(self, x):
        self.normal = Normal(x[:, 0] / 2 + 0.3, math.sqrt(0.8))

    def log_prob(self, input):
        """Return log densities, `(S, batch)`."""
        return self.normal.log_prob(input[..., 0])

    def rsample_and_log_prob(self, num):
        """Return draws, `(num, batch, 1)`, and log densities."""
        draws = self.normal.rsample((num,))
        return draws[..., None], self.normal.log_prob(draws)


def gaussian_kl(mean, variance, other_mean, other_variance):
    """Return KL(N(mean, variance) ‖ N(other...)) in nats."""
    ratio = variance / other_variance
    shift = (mean - other_mean) ** 2 / other_variance
    return 0.5 * (ratio + shift - 1 - math.log(ratio))


theta, x = simulate(50_000)
energy = Normal(x[:, 0] / 2, math.sqrt(0.7))
estimates = jeffreys_divergences(
    GaussianFlow(x), lambda t: energy.log_prob(t[..., 0]), theta, 8, "generalized"
)
exact = (
    gaussian_kl(0, 0.5, 0.3, 0.8),
    gaussian_kl(0.3, 0.8, 0, 0.7),
    gaussian_kl(0, 0.5, 0, 0.7),
)
for name, estimate, value, unknown in zip(
    ("D1", "D2", "D3"), estimates, exact, (ENTROPY, 0, ENTROPY), strict=True
):
    found = float(estimate.detach().mean()) - unknown
    print(f"{name}: estimated {found:.3f}, exact {value:.3f} nats")

# %% [markdown]
# D1 and D3 contain the entropy H, which we know only in this example. That matters next.
#
# ## Weights that move
#
# Fixed weights of the three terms have to be found by trial. Instead, each divergence is
# a constraint $D_i \le \epsilon_i$ that may be relaxed at a cost, and its weight is the
# multiplier of that constraint. It settles at $\lambda_i = \alpha (D_i + \kappa)$: what
# fits worst gets the attention; what fits *better than it can* (D < 0) loses it.

# %%
multipliers = ResilientMultipliers(slack=1.0, relaxation_cost=1.0)
path = []
for step in range(600):
    memorised = 0.3 - 0.003 * min(step, 400)  # D1 falls below zero: the flow memorises
    multipliers.update(torch.tensor([memorised, 0.2, 0.1]))
    path.append(multipliers.values.tolist())
print("multipliers at rest:", [round(value, 2) for value in multipliers.values.tolist()])

figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for values, name in zip(np.transpose(path), ("D1", "D2", "D3"), strict=True):
    axis.plot(values, label=name)
axis.set(xlabel="step", ylabel="multiplier", title="D1 falls from 0.3 to -0.9 nats")
axis.legend()
figure.savefig(OUTPUT / "multipliers.png", dpi=110)

# %% [markdown]
# ## The entropy reference
#
# For D1 < 0 to mean "memorises", H has to be known, and it is not. The lowest held-out
# loss so far stands in for it: no model can beat H on fresh data on average, and the best
# one so far comes nearest. A flow whose loss on its *training* set is below that has
# learnt the training set by heart. Train on 200 simulations and watch: the held-out loss
# comes down to about 1.072, the multiplier of D1 falls, and from then on the
# flow follows the energy instead of the data.

# %%
theta, x = simulate(200)
trainer = JNPE(prior, show_progress_bars=False)
trainer.append_simulations(theta, x).train(max_num_epochs=10 if FAST else 200)
lowest = min(trainer.summary["validation_loss"])
print(f"lowest held-out loss {lowest:.3f}, H {ENTROPY:.3f}")
figure = plots.plot_training(trainer.summary)
figure.savefig(OUTPUT / "training.png", dpi=110)
figure

# %% [markdown]
# The held-out loss is a mean over only 20 simulations, and may lie below H by chance, by
# some tenths of a nat. Then the flow gets a little more data weight than it should; the
# table below shows what comes of it.
#
# ## What each switch does
#
# KL(π ‖ p) of the flow after the last of 100 epochs, on fresh pairs. "Data only" is the
# flow's maximum likelihood without an energy, as in NPE, without stopping early.

# %%
SWITCHES = {
    "default": {},
    "data only": {"weighting": "fixed", "weights": (1.0, 0.0, 0.0)},
    "fixed weights 1, 1, 1": {"weighting": "fixed"},
    "one energy, not four": {"num_energies": 1},
    "slack 0.3": {"slack": 0.3},
    "normalizer 'importance'": {"normalizer": "importance"},
}
theta_test, x_test = simulate(5000)
rows = {}
for name, options in SWITCHES.items():
    torch.manual_seed(1)
    trainer = JNPE(prior, show_progress_bars=False, **options)
    trainer.append_simulations(theta, x)
    epochs = 5 if FAST else 100
    trainer.train(max_num_epochs=epochs, stop_after_epochs=2 * epochs)
    with torch.no_grad():
        loss = trainer.latest.flow.loss(theta_test, x_test).mean()
    log_z = trainer.summary["validation_log_z"][-1]
    rows[name] = float(loss) - ENTROPY
    weights = "/".join(f"{w:.2f}" for w in trainer.summary["multipliers"][-1])
    print(f"{name:24} KL {rows[name]:.3f}   log Z {log_z:+.2f}   weights {weights}")

figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
axis.barh(list(rows), list(rows.values()))
axis.invert_yaxis()
axis.set(xlabel="KL of the flow after the last epoch, nats")
figure.savefig(OUTPUT / "switches.png", dpi=110)

# %% [markdown]
# What to look at: "data only" is the one that overfits. The importance-sampled normaliser
# lets log Z drift away from zero, which the default does not. The rest differs by little
# here, in one dimension; `benchmarks/results/ablations.md` has harder tasks.
