# %% [markdown]
# # Can I trust this posterior?
#
# This tutorial compares three cases of the same model:
#
# - The training went well.
# - The training ended too early.
# - The observation comes from another simulator than the training data.
#
# Which diagnostic detects which case?
#
#     python tutorials/trust.py
#
# The script takes about four minutes on two cores and writes its figures into
# `results/tutorials`.

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

# %%
theta = prior.sample((1000,))
x = decay(theta)
trained, under_trained = (JNPE(prior, show_progress_bars=False) for _ in range(2))
trained.append_simulations(theta, x).train(max_num_epochs=5 if FAST else 2**31 - 1)
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
# Flow and energy learn the same posterior in different ways. They agree where the
# simulations determine the posterior. After a poor training nothing makes them agree. The
# report has four numbers to look at:
#
# - KL: the divergence between the two, in nats.
# - ESS: the effective sample size of the weights that turn the flow into the energy.
# - Pareto k̂: the flow misses a part of the energy if it is above 0.7.
# - p(x): how unusual the observation is among the simulations.
#
# Both models move entries of x that lie far outside the simulations to a tenth of their
# range beyond them, so they may agree on such an x. The p-value is then the only warning.

# %%
for name, (_, x_o) in cases.items():
    report = posteriors[name].agreement(x_o)
    print(f"{name}:\n{report}\n")
    plots.plot_agreement(report).savefig(OUTPUT / f"agreement_{name}.png", dpi=110)

# %% [markdown]
# The report detects both bad cases. After four epochs the flow is still close to the
# prior. The energy is pooled with simpler models, which learn faster, and it is many nats
# ahead. The two cannot both be right. The report prefers the energy, and the next section
# tests that.
#
# That section cannot detect the faulty observation. A posterior can be right on average
# over the simulations and still be wrong for an x that resembles none of them. Agreement
# is no proof either, because two models can be wrong in the same way.
#
# ## On fresh simulations: is the posterior calibrated?
#
# If the posterior is right on average, the rank of the true parameter among its samples
# is uniform (SBC), and credible regions contain the truth as often as they claim (TARP).
# These tests need fresh simulations but no second model, and they say which model is
# wrong. Here the under-trained flow is too wide. Its correction by the energy is
# better. One of the simpler models, a curve with independent errors, has the form of this
# simulator. But with four epochs it is fitted in a tenth of its steps.
#
# Do not rely on calibration alone. The prior is calibrated, and so are other posteriors
# that are too vague in the right way. The test loss and the width of the posterior
# separate them from a good posterior.

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
        num_posterior_samples=200,
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
# Curves inside the grey band of the first figure are fine. A curve that goes down and
# then up belongs to a posterior that is too wide. A curve that goes up and then down
# belongs to one that is too narrow, which is the dangerous case.
#
# ## In arviz: what does the posterior predict?
#
# The next cells export the three posteriors to arviz, together with simulations that they
# predict. The posterior of the mis-specified case explains the outlier by more noise in
# all points. Its predictions are far too wide at all times, and the outlier still lies
# outside them.

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
# ## Do not compare with one true parameter
#
# The observation was simulated with a rate of 2.0, but the well-specified posterior has a
# mean of about 1.5. Is it wrong? With three parameters, the exact posterior can be
# computed on a grid. It shows that the noise of this observation looks like a slower
# decay. A single true parameter therefore says little. The ranks of many, above, are the
# test.

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
# ## The order of checks
#
# 1. `posterior.agreement(x_o)`: does x_o resemble the simulations, and do the models
#    agree?
# 2. `calibrate(posterior, theta_test, x_test)`: is the posterior right on average?
# 3. Simulate from the posterior and compare with the observation.
