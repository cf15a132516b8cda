# %% [markdown]
# # Can I trust this posterior?
#
# Three cases side by side, of the same model: a training that went well, one that ended
# too soon, and one on a simulator that is not the one the observation came from. Which
# diagnostic tells which case?
#
#     python tutorials/trust.py
#
# About four minutes on two cores; figures go to `results/tutorials`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sbi.utils import BoxUniform
from torch.distributions import Normal

from sbi_jeffreys import JNPE, calibrate, compare, plots, to_inference_data
from sbi_jeffreys.plots.style import color_of

FAST = bool(os.environ.get("TUTORIAL_FAST"))  # a quick look; its numbers mean little
OUTPUT = Path("results/tutorials/trust")
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)

TIMES = torch.linspace(0, 1, 20)
NAMES = ["amplitude", "rate", "noise"]
prior = BoxUniform(torch.tensor([0.5, 0.5, 0.02]), torch.tensor([2.0, 5.0, 0.3]))


def decay(theta, outlier=0.0):
    """Map parameters `(N, 3)` to noisy exponential decays `(N, 20)`."""
    amplitude, rate, noise = theta.T[..., None]
    curve = amplitude * (-rate * TIMES).exp()
    x = curve + noise * torch.randn(len(theta), len(TIMES))
    x[:, 5] += outlier  # an instrument fault that the simulator ignores
    return x


theta_o = torch.tensor([[1.2, 2.0, 0.1]])
x_good, x_faulty = decay(theta_o), decay(theta_o, outlier=2.0)

# %% [markdown]
# ## Three posteriors
#
# (The patience of 30 epochs, instead of 200, is so that you need not wait.)

# %%
theta = prior.sample((1000,))
x = decay(theta)
trained, under_trained = (JNPE(prior, show_progress_bars=False) for _ in range(2))
trained.append_simulations(theta, x).train(
    stop_after_epochs=30, max_num_epochs=5 if FAST else 2**31 - 1
)
under_trained.append_simulations(theta, x).train(max_num_epochs=4)

cases = {
    "well-specified": (trained, x_good),
    "under-trained": (under_trained, x_good),
    "mis-specified": (trained, x_faulty),
}
posteriors = {
    name: trainer.build_posterior(sample_with="energy")
    for name, (trainer, _) in cases.items()
}

# %% [markdown]
# ## At the observation: do flow and energy agree?
#
# Both models learnt the same posterior in different ways. Where the simulations determine
# it, they agree; after a poor training, nothing makes them. Look at KL (nats), at the
# effective sample size of the weights that turn one into the other, at Pareto k̂ (above
# 0.7 the weights can't be relied on), and at p(x): how unusual the observation is among
# the simulations. (Entries of x far outside of these are taken for the most extreme of
# them by both models, which may agree on it.)

# %%
for name, (_, x_o) in cases.items():
    report = posteriors[name].agreement(x_o)
    print(f"{name}:\n{report}\n")
    plots.plot_agreement(report).savefig(OUTPUT / f"agreement_{name}.png", dpi=110)

# %% [markdown]
# Both are caught here. After four epochs the flow has hardly left the prior, while the
# energy, which is pooled with simpler models that need no epochs, is many nats ahead of
# it: they can't both be right. Which of them is, agreement does not tell. And the faulty
# observation is caught here only: whatever is right on average over the simulations says
# nothing of an x that no simulation resembles. Nor is agreement a proof: two models that
# were wrong in the same way would agree on that.
#
# ## On fresh simulations: is the posterior calibrated?
#
# If the posterior is right on average, the true parameter's rank among its samples is
# uniform (SBC), and credible regions hold the truth as often as they say (TARP). This
# needs fresh simulations, and no second model, and it tells which: the under-trained
# flow is found to be too wide, its correction by the energy is not. (One of the simpler
# models, a curve plus independent errors, is right here.) But do not let calibration
# alone decide: the prior is calibrated, too, and so is all that is vague in the right
# way. The test loss tells such posteriors apart, and how far they contract.

# %%
theta_test = prior.sample((60 if FAST else 200,))
x_test = decay(theta_test)
candidates = {
    "well-specified": posteriors["well-specified"],
    "under-trained": posteriors["under-trained"],
    "under-trained flow": under_trained.build_posterior(),
}
calibrations = {
    name: calibrate(
        posterior,
        theta_test,
        x_test,
        num_posterior_samples=100,
        parameter_names=NAMES,
        seed=0,
        show_progress_bars=False,
    )
    for name, posterior in candidates.items()
}
for name, calibration in calibrations.items():
    print(f"{name}: {calibration.verdict}")
figure = plots.plot_ranks(calibrations)
figure.savefig(OUTPUT / "ranks.png", dpi=110)
figure

# %%
figure = plots.plot_tarp(calibrations)
figure.savefig(OUTPUT / "tarp.png", dpi=110)
figure

# %% [markdown]
# In the figure of ranks, lines within the grey band are fine. A line below it on the left
# and above it on the right is a posterior that is too wide; the other way round, too
# narrow, the dangerous one.
#
# ## In arviz: what does the posterior predict?
#
# All three as arviz data, and the simulations that each posterior predicts. The
# mis-specified one explains the outlier by more noise in all points: its predictions are
# far too wide everywhere but where the outlier is.

# %%
data = {
    name: to_inference_data(
        {name: posteriors[name]},
        x_o,
        num_samples=500 if FAST else 2000,
        prior=prior,
        parameter_names=NAMES,
        simulator=decay,
        seed=0,
        show_progress_bars=False,
    )[name]
    for name, (_, x_o) in cases.items()
}
print(compare(data))
figure = plots.plot_densities(data)
figure.savefig(OUTPUT / "densities.png", dpi=110)
figure

# %%
figure, axes = plt.subplots(1, 3, sharey=True, figsize=(10, 3.2), layout="constrained")
for axis, (name, (_, x_o)) in zip(axes, cases.items(), strict=True):
    predicted = torch.as_tensor(data[name]["posterior_predictive"]["x"].values)
    levels = torch.tensor([0.05, 0.5, 0.95])
    low, middle, high = predicted.reshape(-1, 20).quantile(levels, 0)
    axis.plot(TIMES, middle, color=color_of(name))
    axis.fill_between(TIMES, low, high, color=color_of(name), alpha=0.2)
    axis.plot(TIMES, x_o[0], "k.")
    axis.set(title=name, xlabel="time")
figure.savefig(OUTPUT / "predictive.png", dpi=110)

# %% [markdown]
# ## What not to compare with
#
# The observation came from a rate of 2.0, and the well-specified posterior says about
# 1.5. Is it wrong? Three parameters can be put on a grid, where the posterior is exact:
# the noise of this one observation happens to look like a slower decay. A single true
# parameter tells little; the ranks of many, above, are the test.

# %%
sides = [
    torch.linspace(low, high, 80)
    for low, high in zip(prior.base_dist.low, prior.base_dist.high, strict=True)
]
grid = torch.cartesian_prod(*sides)
curves = grid[:, :1] * (-grid[:, 1:2] * TIMES).exp()
log_likelihood = Normal(curves, grid[:, 2:]).log_prob(x_good).sum(-1)
weights = log_likelihood.softmax(0)[:, None]
mean = (weights * grid).sum(0)
sd = (weights * (grid - mean).square()).sum(0).sqrt()
for name, true, centre, width in zip(NAMES, theta_o[0], mean, sd, strict=True):
    print(f"{name}: true {true:.2f}, exact posterior {centre:.2f} ± {width:.2f}")

# %% [markdown]
# ## So, in this order
#
# 1. `posterior.agreement(x_o)`: is x_o like the simulations, do the models agree?
# 2. `calibrate(posterior, theta_test, x_test)`: right on average?
# 3. Predict, and look.
