# %% [markdown]
# # Swap one name
#
# You infer parameters with NPE of `sbi`. What changes if you use `JNPE` instead, and when
# is it worth the time?
#
# The simulator comes from sbi's getting-started guide. It has three parameters and adds
# Gaussian noise to them, so the exact posterior is known. Away from the edges of the
# prior it is a Gaussian with mean x − 1 and standard deviation 0.1.
#
#     python tutorials/swap_one_name.py
#
# The script takes about three minutes on two cores and writes its figures into
# `results/tutorials`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform
from torch.distributions import Normal

from sbi_jeffreys import JNPE, compare, plots, to_inference_data

FAST = bool(os.environ.get("TUTORIAL_FAST"))  # a quick look; its numbers mean little
OUTPUT = Path("results/tutorials/swap_one_name")
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)

prior = BoxUniform(-2 * torch.ones(3), 2 * torch.ones(3))


def simulator(theta):
    """Return x = θ + 1 + noise, shape `(N, 3)`."""
    return theta + 1 + 0.1 * torch.randn_like(theta)


# %% [markdown]
# ## The same lines with another name
#
# `JNPE` takes the arguments of NPE in the same order and builds posteriors of sbi.

# %%
theta = prior.sample((500,))
x = simulator(theta)

trainers = {
    "NPE": NPE(prior, show_progress_bars=False),
    "JNPE": JNPE(prior, show_progress_bars=False),
}
for trainer in trainers.values():
    trainer.append_simulations(theta, x).train(max_num_epochs=5 if FAST else 2**31 - 1)

x_o = torch.tensor([1.3, 0.8, 1.0])
posteriors = {name: trainer.build_posterior() for name, trainer in trainers.items()}
posteriors["JNPE, corrected"] = trainers["JNPE"].build_posterior(sample_with="energy")
samples = {name: p.sample((2000,), x=x_o) for name, p in posteriors.items()}

# %% [markdown]
# JNPE trains two models of the posterior. One is a flow. The other is an energy, which
# corrects the flow's samples. We compare NPE and both posteriors of JNPE with samples
# from the exact posterior.
#
# The second table holds the distances from the exact posterior. A perfect posterior has a
# C2ST of 0.5 and a sliced Wasserstein distance close to 0.

# %%
samples["exact"] = x_o - 1 + 0.1 * torch.randn(2000, 3)
data = to_inference_data(samples, x_o, prior=prior)
print(compare(data, reference="exact"))
figure = plots.plot_densities(data)
figure.savefig(OUTPUT / "densities.png", dpi=110)
figure

# %% [markdown]
# A density that is wider than the exact one, or shifted, is wrong. With 500 simulations
# this can happen, so check a posterior before you rely on it. The first check is whether
# flow and energy agree at the observation. The tutorial `trust.py` shows the other
# checks.

# %%
print(posteriors["JNPE"].agreement(x_o))

# %% [markdown]
# ## When it helps
#
# NPE overfits more with fewer simulations, so it has to stop earlier. We measure this by
# the mean KL divergence from the exact posterior, in nats. It is the negative
# log-likelihood on fresh pairs minus the exact value.
#
# NPE's density is evaluated without truncation to the prior, as it is trained. Both train
# with their defaults.

# %%
theta_test = prior.sample((1000,))
x_test = simulator(theta_test)
gaussian = Normal(x_test - 1, 0.1)
inside = gaussian.cdf(torch.tensor(2.0)) - gaussian.cdf(torch.tensor(-2.0))
exact = -(gaussian.log_prob(theta_test) - inside.log()).sum(-1).mean()

methods = {"NPE": NPE, "JNPE": JNPE}
gaps = {"NPE": {}, "JNPE": {}}
for num in (100, 300) if FAST else (100, 300, 1000, 3000):
    theta = prior.sample((num,))
    x = simulator(theta)
    for name, method in methods.items():
        trainer = method(prior, show_progress_bars=False)
        flow = trainer.append_simulations(theta, x).train(
            max_num_epochs=3 if FAST else 2**31 - 1
        )
        with torch.no_grad():
            loss = flow.loss(theta_test, x_test).mean()
        gaps[name][num] = float(loss - exact)
        print(f"{num:5} simulations, {name}: {gaps[name][num]:.3f} nats")

# %%
figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
for name, values in gaps.items():
    axis.loglog(list(values), list(values.values()), "o-", label=name)
axis.set(xlabel="simulations", ylabel="KL from the exact posterior, nats")
axis.legend()
figure.savefig(OUTPUT / "budgets.png", dpi=110)

# %% [markdown]
# Compare the curves along the horizontal axis first. JNPE with 100 simulations is more
# accurate than NPE with 3,000. When simulations are expensive, JNPE saves many of them.
#
# Then look at the cost. NPE with its defaults stops early and trains in seconds. JNPE
# takes half a minute to a minute. If simulations are cheap, run more of them and use NPE.
#
# This simulator favours JNPE. Its energy is pooled with three simpler models: a linear
# model, an exponential family and a synthetic likelihood. All three are exact for this
# simulator. The summary holds the weight of each model in the pool. A weight of 0 means
# that the model has no part, and a weight of 1 means that it replaces the energy
# networks. Where all three weights are 0, only the networks help. The page
# `benchmarks/results/accuracy.md` says how far they come alone.

# %%
for model in ("linear_model", "exponential_family", "synthetic_likelihood"):
    print(model, trainers["JNPE"].summary[f"{model}_weight"])
