# %% [markdown]
# # Bring your own
#
# This tutorial shows what you can bring to JNPE: a NumPy simulator, a prior with mixed
# bounds, time series and images as data, and your own networks and flow. It also shows
# how to save and resume a training and how to see it in TensorBoard.
#
#     python tutorials/bring_your_own.py
#
# The script takes about three minutes on two cores and writes its results into
# `results/tutorials`.

# %%
import os
import pickle
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from joblib import Parallel, delayed
from sbi.utils import BoxUniform, MultipleIndependent
from torch import nn
from torch.distributions import Gamma, Normal

from sbi_jeffreys import JNPE, build_spline_flow, plots, to_inference_data

FAST = bool(os.environ.get("TUTORIAL_FAST"))  # a quick look; its numbers mean little
EPOCHS = 3 if FAST else 200
OUTPUT = Path("results/tutorials/bring_your_own")
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(0)

# %% [markdown]
# ## A NumPy simulator, in parallel, with a mixed prior
#
# The simulator is a noisy oscillator. Its frequency lies between two bounds, its damping
# is positive, and its phase is unbounded. The flow works in an unconstrained space, so no
# sample ever leaves these bounds.
#
# joblib runs the simulator in parallel. Give each call its own seed. Otherwise all
# workers may draw the same noise.

# %%
prior = MultipleIndependent(
    [
        BoxUniform(torch.tensor([1.0]), torch.tensor([5.0])),
        Gamma(torch.tensor([2.0]), torch.tensor([2.0])),
        Normal(torch.zeros(1), torch.ones(1)),
    ],
    validate_args=False,
)
NAMES = ["frequency", "damping", "phase"]
TIMES = np.linspace(0, 3, 50)


def oscillator(theta: np.ndarray, seed: int) -> np.ndarray:
    """Map parameters `(3,)` to a time series `(50,)`."""
    frequency, damping, phase = theta
    noise = 0.1 * np.random.default_rng(seed).standard_normal(len(TIMES))
    return np.exp(-damping * TIMES) * np.sin(2 * frequency * TIMES + phase) + noise


theta = prior.sample((500,))
series = Parallel(n_jobs=2)(
    delayed(oscillator)(parameters, seed) for seed, parameters in enumerate(theta.numpy())
)
x = torch.from_numpy(np.stack(series)).float()

# %% [markdown]
# ## Time series: an embedding network
#
# An embedding network turns x into features. It is trained together with the flow and the
# energy, which share it.

# %%
convolutions = nn.Sequential(
    nn.Unflatten(1, (1, 50)),
    nn.Conv1d(1, 8, 5, stride=2),
    nn.SiLU(),
    nn.Conv1d(8, 16, 5, stride=2),
    nn.SiLU(),
    nn.Flatten(),
    nn.LazyLinear(16),
)
convolutions(x[:1])  # a lazy layer learns its size from the first batch
trainer = JNPE(prior, embedding_net=convolutions, show_progress_bars=False)
trainer.append_simulations(theta, x).train(max_num_epochs=EPOCHS)

theta_o = torch.tensor([2.5, 0.5, 0.3])
x_o = torch.from_numpy(oscillator(theta_o.numpy(), seed=len(theta))).float()
posterior = trainer.build_posterior(sample_with="energy")
samples = posterior.sample((1000,), x=x_o)
for name, true, values in zip(NAMES, theta_o.tolist(), samples.T, strict=True):
    low, high = values.quantile(torch.tensor([0.05, 0.95])).tolist()
    print(f"{name}: true {true:.2f}, 90 % interval {low:.2f} to {high:.2f}")
print(posterior.agreement(x_o))

data = to_inference_data(
    {"series": samples}, x_o, prior=prior, parameter_names=NAMES, seed=0
)
figure = plots.plot_densities(data)
figure.savefig(OUTPUT / "oscillator.png", dpi=110)
figure

# %% [markdown]
# ## Images: more axes
#
# x may have any shape. Here it is an image of 16 by 16 pixels that shows a spot of
# unknown place and width. The energy gets its own embedding network in this example.

# %%
GRID = torch.linspace(-1, 1, 16)


def spot(theta):
    """Map parameters `(N, 3)` to noisy images `(N, 1, 16, 16)`."""
    column, row, width = (part[:, None, None] for part in theta.T)
    squares = (GRID[None, None, :] - column) ** 2 + (GRID[None, :, None] - row) ** 2
    image = (-0.5 * squares / width**2).exp()
    return (image + 0.1 * torch.randn_like(image)).unsqueeze(1)


def pixels_to_features():
    """Return a small convolutional network from `(N, 1, 16, 16)` to `(N, 32)`."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
    )


place = BoxUniform(torch.tensor([-1.0, -1.0, 0.1]), torch.tensor([1.0, 1.0, 0.5]))
theta_spots = place.sample((500,))
of_images = JNPE(
    place,
    embedding_net=pixels_to_features(),
    energy_embedding_net=pixels_to_features(),
    show_progress_bars=False,
)
of_images.append_simulations(theta_spots, spot(theta_spots))
of_images.train(max_num_epochs=EPOCHS)
theta_spot = torch.tensor([[0.3, -0.4, 0.2]])
image = spot(theta_spot)
found = of_images.build_posterior().sample((1000,), x=image)
print("spot:", theta_spot[0].tolist(), "posterior mean:", found.mean(0).tolist())

figure, axis = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
axis.imshow(image[0, 0], extent=(-1, 1, -1, 1), origin="lower", cmap="gray")
axis.scatter(*found[:300, :2].T, s=3, color="C1")
axis.set(title="samples of the spot's centre")
figure.savefig(OUTPUT / "spot.png", dpi=110)

# %% [markdown]
# ## Your own flow and energy
#
# There are three ways to choose the flow. For a larger one, pass
# `partial(build_spline_flow, hidden_features=...)`. For one of sbi's flows, pass its
# name, such as "maf". For any other, pass a builder that returns an nflows or zuko
# estimator of sbi.
#
# The energy's network takes standardised parameters `(sample, batch, D)` and embedded
# data `(batch, features)`, and returns `(sample, batch)`. It should return zeros at
# first, so that training starts at the prior.


# %%
class Products(nn.Module):
    """A log-ratio that multiplies features of θ by features of x."""

    def __init__(self, input_features: int, condition_features: int) -> None:
        super().__init__()
        self.of_theta = nn.Sequential(
            nn.Linear(input_features, 64), nn.SiLU(), nn.Linear(64, 32)
        )
        self.of_x = nn.Sequential(
            nn.Linear(condition_features, 64), nn.SiLU(), nn.Linear(64, 32)
        )
        self.head = nn.Linear(32, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input, condition):
        """Return log-ratios in nats, `(sample, batch)`."""
        return self.head(self.of_theta(input) * self.of_x(condition)).squeeze(-1)


custom = JNPE(
    prior,
    density_estimator=partial(build_spline_flow, hidden_features=80, num_transforms=3),
    energy_net=Products,
    num_energies=2,
    show_progress_bars=False,
)
custom.append_simulations(theta, x).train(max_num_epochs=EPOCHS)
print(
    "lowest held-out loss of the custom networks:", min(custom.summary["validation_loss"])
)

# %% [markdown]
# ## Save, load, resume
#
# A pickled trainer contains its simulations, its optimisers and its random state. After
# loading, training continues exactly where it stopped. The same holds after you interrupt
# a training with Ctrl-C. You can also pickle a posterior alone.

# %%
path = OUTPUT / "trainer.pkl"
path.write_bytes(pickle.dumps(custom))
loaded = pickle.loads(path.read_bytes())
before = loaded.epoch
loaded.train(resume_training=True, max_num_epochs=before + 2)
print(f"resumed at epoch {before}, now at {loaded.epoch}")
(OUTPUT / "posterior.pkl").write_bytes(pickle.dumps(loaded.build_posterior()))

# %% [markdown]
# ## See it in TensorBoard
#
# With `JNPE(prior, tracker=TensorBoardTracker(SummaryWriter("logs")))`, each training
# writes its losses, multipliers, divergences, effective sample sizes and learning rates
# to `logs` when it ends. Look at them with
#
#     tensorboard --logdir logs
#
# The tracker is in `sbi.utils.tracking`. Or draw them as a figure:

# %%
figure = plots.plot_training(loaded.summary)
figure.savefig(OUTPUT / "training.png", dpi=110)
figure
