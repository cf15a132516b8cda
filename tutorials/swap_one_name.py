# %% [markdown]
# # Swap one name
#
# You infer parameters with `sbi`'s NPE. What changes if you write JNPE instead, and when
# is it worth it? The simulator is that of sbi's getting-started guide, three parameters
# with Gaussian noise around them, so the answer can be checked: away from the edges of
# the prior, the posterior is a Gaussian of standard deviation 0.1 around x - 1.
#
#     python tutorials/swap_one_name.py
#
# writes its figures into `results/tutorials`. About three minutes on two cores.

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
# ## The same lines, with another name
#
# `JNPE` takes NPE's arguments in NPE's order, and what it returns is a posterior of sbi.

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
# JNPE trains two models of the posterior: a flow, and an energy that corrects the flow's
# samples. Compare all three with the exact posterior, of which we can draw samples here.
# Look at the columns of distances: the exact posterior's own samples would have a C2ST of
# 0.5, and a distance of nearly zero.

# %%
samples["exact"] = x_o - 1 + 0.1 * torch.randn(2000, 3)
data = to_inference_data(samples, x_o, prior=prior)
print(compare(data, reference="exact"))
figure = plots.plot_densities(data)
figure.savefig(OUTPUT / "densities.png", dpi=110)
figure

# %% [markdown]
# What would be wrong? Densities that are wider than the exact one, or shifted: a
# posterior that was trained on 500 simulations must not be trusted before it was looked
# at. Ask whether flow and energy agree at the observation; `trust.py` goes on from there.

# %%
print(posteriors["JNPE"].agreement(x_o))

# %% [markdown]
# ## When it helps, and when it does not matter
#
# The fewer simulations there are, the more NPE overfits, and the earlier it has to stop.
# Test negative log-likelihood on fresh pairs, less its exact value: the mean KL from the
# true posterior, in nats. (NPE's density is taken before it is cut off at the edges of
# the prior, as it is trained. JNPE's patience, 200 epochs by default, is 50 here, and it
# gets no 3,000 simulations, so that you need not wait.)

# %%
theta_test = prior.sample((1000,))
x_test = simulator(theta_test)
gaussian = Normal(x_test - 1, 0.1)
inside = gaussian.cdf(torch.tensor(2.0)) - gaussian.cdf(torch.tensor(-2.0))
exact = -(gaussian.log_prob(theta_test) - inside.log()).sum(-1).mean()

methods = {  # patience in epochs, and the largest number of simulations
    "NPE": (NPE, 20, 3000),
    "JNPE": (JNPE, 50, 1000),
}
gaps = {"NPE": {}, "JNPE": {}}
for num in (100, 300) if FAST else (100, 300, 1000, 3000):
    theta = prior.sample((num,))
    x = simulator(theta)
    for name, (method, patience, most) in methods.items():
        if num > most:
            continue
        trainer = method(prior, show_progress_bars=False)
        flow = trainer.append_simulations(theta, x).train(
            stop_after_epochs=patience, max_num_epochs=3 if FAST else 2**31 - 1
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
# Read the figure across: JNPE with 100 simulations is about as good as NPE with 300, and
# with 300 about as good as NPE with 3,000. With hundreds, every simulation that it saves
# is one that you need not run. And read it down: NPE, at its defaults, stopped early, and
# gains little from 1,000 to 3,000; but it took seconds, where JNPE took a minute. If
# simulations cost nothing, run more of them, and NPE will do.
#
# This simulator flatters JNPE: it is linear, and the energy is pooled with three simpler
# models that are all right here: a linear one, an exponential family, and a synthetic
# likelihood. What part they have is in the summary, 0 for none of it, 1 for nothing else.
# Where all are zero, the networks have to do it all; the README's table has such tasks,
# too.

# %%
for model in ("linear_model", "exponential_family", "synthetic_likelihood"):
    print(model, trainers["JNPE"].summary[f"{model}_weight"])
