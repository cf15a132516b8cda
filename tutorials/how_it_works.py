# %% [markdown]
# # How it works
#
# JNPE trains a flow and an energy with three divergences, three multipliers, and an
# estimate of an unknown entropy. This tutorial shows each of them on an example with one
# parameter, where everything is known exactly:
#
# $\theta \sim N(0, 1)$ and $x = \theta + N(0, 1)$, so
# $\pi(\theta | x) = N(x / 2, 1 / 2)$. The entropy of this posterior is
# $H = \frac12 \log(\pi e) = 1.072$ nats for every x.
#
#     python tutorials/how_it_works.py
#
# The script takes about two minutes on two cores and writes its figures into
# `results/tutorials`.

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
# A flow p and an energy model $q \propto e^f$ are trained together on three divergences:
#
# - D1 = KL(π ‖ p): the flow fits the data.
# - D2 = KL(p ‖ q): the flow agrees with the energy. It is estimated from the flow's own
#   samples, which are unlimited.
# - D3 = KL(π ‖ q): the energy fits the data.
#
# To test the estimates, we use two Gaussians that are wrong on purpose,
# $p = N(x/2 + 0.3, 0.8)$ and $q = N(x/2, 0.7)$. The KL divergence of two Gaussians has a
# closed form, which we compare with the estimates on a batch.


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
# D1 and D3 contain the entropy H. Here we know it, but usually nobody does. The section
# on the entropy reference comes back to this.
#
# ## Multipliers as weights
#
# Fixed weights of the three terms have to be found by trial and error. JNPE treats each
# divergence as a constraint $D_i \le \epsilon_i$ that may be relaxed at a cost. The
# weight of a divergence is the multiplier of its constraint, which settles at
# $\lambda_i = \alpha (D_i + \kappa)$. A model that fits badly gets a large weight. A
# model that fits better than possible (D < 0) loses its weight, because it must have
# memorised the data.
#
# The next cell lets D1 fall from 0.3 to −0.9 nats. Its multiplier falls close to 0, and
# the other two settle above 1.

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
# The sign of D1 depends on H, which is unknown. The lowest held-out loss so far replaces
# it. On average over fresh data, no model has a loss below H, and the best model so far
# comes closest to H. If the flow's loss on its *training* set is lower than that, the
# flow has memorised the training set.
#
# We train on 200 simulations. While the held-out loss falls, the flow's training loss
# falls, too. Where it falls faster, D1 gets a smaller multiplier.

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
# The held-out loss is a mean over only 20 simulations. Here chance moves it below H. The
# flow then gives the data a little more weight than it should.
# The next section shows how much this matters.
#
# ## What each option does
#
# We measure KL(π ‖ p) of the flow after the last of 100 epochs, on fresh pairs. "Data
# only" trains the flow by maximum likelihood without an energy and without early
# stopping.

# %%
SWITCHES = {
    "default": {},
    "constraints not relaxed": {"weighting": "constrained"},
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
# "Data only" overfits, and its energy, which nothing trains, is not normalised. The other
# options differ little on this one-dimensional example. The file
# `benchmarks/results/ablations.md` has harder tasks.
