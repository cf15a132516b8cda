# %% [markdown]
# # Thousands of observations
#
# An amortised posterior is trained once and then answers for any number of observations.
# This tutorial measures how fast it answers and shows how to limit memory. The same code
# runs on a CPU and on a GPU; only `device` differs.
#
#     python tutorials/thousands_of_observations.py
#
# The script takes about four minutes on two cores and writes its figures into
# `results/tutorials`.

# %%
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sbi.utils import BoxUniform

from sbi_jeffreys import JNPE, calibrate, plots

FAST = bool(os.environ.get("TUTORIAL_FAST"))  # a quick look; its numbers mean little
OUTPUT = Path("results/tutorials/thousands_of_observations")
OUTPUT.mkdir(parents=True, exist_ok=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

NUM_SIMULATIONS = 2000 if FAST else 10_000
NUM_OBSERVATIONS = 50 if FAST else 2000

prior = BoxUniform(-2 * torch.ones(4), 2 * torch.ones(4), device=DEVICE)


def simulator(theta):
    """Map parameters `(N, 4)` to noisy features `(N, 8)`."""
    features = torch.cat([theta, theta.roll(1, -1) * theta], -1)
    return features + 0.2 * torch.randn_like(features)


# %% [markdown]
# ## Simulations larger than memory
#
# Expensive simulations are often stored in files. JNPE trains on arrays that are mapped
# from disk by `numpy.load(path, mmap_mode="r")` without reading them into memory. While
# one batch is used, a thread loads the next.
#
# Arrays in memory can stay there while a GPU trains: pass `data_device="cpu"` to
# `append_simulations`. The default, `data_device=None`, copies them to the GPU, where
# batches need no transfer.

# %%
theta = prior.sample((NUM_SIMULATIONS,))
np.save(OUTPUT / "theta.npy", theta.cpu().numpy())
np.save(OUTPUT / "x.npy", simulator(theta).cpu().numpy())
theta_on_disk, x_on_disk = (
    np.load(OUTPUT / name, mmap_mode="r") for name in ("theta.npy", "x.npy")
)

trainer = JNPE(prior, device=DEVICE, show_progress_bars=False)
trainer.append_simulations(theta_on_disk, x_on_disk)
start = time.perf_counter()
trainer.train(training_batch_size=1000, max_num_epochs=3 if FAST else 30)
seconds = time.perf_counter() - start
rate = trainer.epoch * NUM_SIMULATIONS / seconds
print(f"trained {trainer.epoch} epochs on {DEVICE}: {rate:,.0f} simulations a second")
figure = plots.plot_training(trainer.summary)
figure.savefig(OUTPUT / "training.png", dpi=110)
figure

# %% [markdown]
# ## All observations at once
#
# `sample_batched` samples for all observations together. It makes at most
# `max_sampling_batch_size` samples at a time, which limits memory. The flow needs no
# rejection. The corrected posterior weights the flow's draws by the energy, so its
# samples take many times as long.

# %%
theta_true = prior.sample((NUM_OBSERVATIONS,))
observations = simulator(theta_true)
speeds = {}
posteriors = {
    "flow": trainer.build_posterior(),
    "corrected": trainer.build_posterior(sample_with="energy"),
}
for name, posterior in posteriors.items():
    start = time.perf_counter()
    samples = posterior.sample_batched((100,), x=observations, show_progress_bars=False)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    speeds[name] = samples.shape[0] * samples.shape[1] / (time.perf_counter() - start)
    print(f"{name}: {tuple(samples.shape)} samples, {speeds[name]:,.0f} a second")

figure, axis = plt.subplots(figsize=(4, 3), layout="constrained")
axis.bar(list(speeds), list(speeds.values()), color=["C0", "C1"])
axis.set(ylabel=f"samples a second on {DEVICE}")
figure.savefig(OUTPUT / "throughput.png", dpi=110)

# %% [markdown]
# ## Calibration over many observations
#
# Here the true parameters are known. If the posterior is calibrated, the rank of each
# true parameter among the samples is uniform over all observations. A curve that leaves
# the grey band means that the posterior is too narrow, too wide or biased. With many
# observations, even a small error shows.

# %%
calibration = calibrate(
    posteriors["corrected"],
    theta_true[:500],
    observations[:500],
    num_posterior_samples=100 if FAST else 300,
    seed=0,
    show_progress_bars=False,
)
print(calibration.verdict)
figure = plots.plot_ranks(calibration)
figure.savefig(OUTPUT / "ranks.png", dpi=110)
figure
