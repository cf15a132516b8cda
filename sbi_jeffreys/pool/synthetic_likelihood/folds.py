r"""The training of the M networks, each on the simulations except a fold of its own.

Each network is fitted by maximum likelihood, and keeps the weights that fitted its fold
best. The learning rate rises in a few steps and then falls along a cosine to zero
(Loshchilov & Hutter 2017, arXiv:1608.03983). Simulations belong to folds by their number,
so those that are appended change no fold. The last few, beyond a multiple of M, are in no
fold, and all networks see them.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from sbi_jeffreys.pool.synthetic_likelihood.ensemble import LikelihoodEnsemble
from sbi_jeffreys.training.averaging import newest_share
from sbi_jeffreys.training.schedule import warm_cosine

BATCH_SIZE = 200
"""Simulations in a batch, drawn with replacement."""

AVERAGING = 0.98
"""Share of the past in the moving average of the weights."""

MAX_STEPS, MOST_STEPS = 1800, 4000
"""Steps with up to 1,000 simulations. With more they grow with the square root of the
number of simulations, up to the second number."""

WARM_UP = 20
"""Steps in which the learning rate rises."""

STEPS_PER_CHECK, PATIENCE = 20, 300
"""Steps between two evaluations of the folds, and steps without a better fit of any
network after which training stops."""


class FoldTraining:
    """Trains the networks in place.

    Attributes:
        networks: The networks.
        num_steps: Number of steps of the whole training.
        step: Number of steps so far.
    """

    def __init__(
        self,
        networks: LikelihoodEnsemble,
        theta: Tensor,
        s: Tensor,
        weights: Tensor,
        num_steps: int,
        rate_factor: float = 1.0,
    ) -> None:
        """
        Args:
            networks: The networks.
            theta: Standardised parameters, shape `(N, D)`, in random order.
            s: Whitened summaries, shape `(N, d)`.
            weights: Weights of the simulations where a fold is evaluated, shape `(N,)`.
            num_steps: Number of steps, at the end of which the learning rate is zero.
            rate_factor: Factor of the error model's learning rate.
        """
        self.networks, self.theta, self.s = networks, theta, s
        self.weights = weights
        self.num_steps, self.step, self.last_gain = num_steps, 0, 0
        self.fold, self.rest = _folds(len(theta), networks.num, theta.device)
        kind = networks.error_model
        self.rate = rate_factor * kind.learning_rate
        layers: list[Any] = [networks.first, *networks.blocks, networks.last]
        shrunk = [layer.weight for layer in layers]
        kept = set(map(id, shrunk))
        others = [p for p in networks.parameters() if id(p) not in kept]
        weight_decay = kind.weight_decay / len(theta)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": shrunk, "weight_decay": weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            fused=True,
        )
        self.latest = [p.detach() for p in networks.parameters()]
        self.average = [p.clone() for p in self.latest]
        self.best = [p.clone() for p in self.latest]
        self.best_losses = theta.new_full((networks.num,), torch.inf)

    @property
    def loss(self) -> float:
        """The lowest losses on the folds, averaged over networks, in nats."""
        return float(self.best_losses.mean())

    def run(self, until: int) -> None:
        """Train up to this number of steps, or until no network gains.

        Args:
            until: Number of steps, at most `num_steps`.
        """
        self.networks.train()
        while self.step < until and self.step - self.last_gain < PATIENCE:
            self._take_step()
            if self.step % STEPS_PER_CHECK == 0 or self.step == until:
                self._check()

    def finish(self) -> None:
        """Run to the end, and give the networks the weights that fitted folds best."""
        self.run(self.num_steps)
        with torch.no_grad():
            for parameter, values in zip(self.latest, self.best, strict=True):
                parameter.copy_(values)
        self.networks.zero_grad()
        self.networks.eval()

    def _take_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * warm_cosine(self.step, self.num_steps, WARM_UP)
        shape = self.rest[:, :BATCH_SIZE]
        rows = self.rest.gather(1, torch.randint_like(shape, self.rest.shape[1]))
        loss = -self.networks(self.theta[rows], self.s[rows]).mean(1).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        torch._foreach_lerp_(
            self.average, self.latest, newest_share(self.step, AVERAGING)
        )
        self.step += 1

    @torch.no_grad()
    def _check(self) -> None:
        """Keep the averaged weights of each network that fits its fold better."""
        names = dict(self.networks.named_parameters())
        named = dict(zip(names, self.average, strict=True))
        self.networks.eval()
        pairs = self.theta[self.fold], self.s[self.fold]
        losses = -torch.func.functional_call(self.networks, named, pairs)
        losses = (self.weights[self.fold] * losses).mean(1)
        self.networks.train()
        better = losses < self.best_losses
        self.best_losses = torch.where(better, losses, self.best_losses)
        for kept, values in zip(self.best, self.average, strict=True):
            kept[better] = values[better]
        if bool(better.any()):
            self.last_gain = self.step


def num_steps(num_simulations: int, effort: float) -> int:
    """Return the number of steps for this number of simulations.

    Args:
        num_simulations: Number of simulations.
        effort: Factor of the number of steps.
    """
    growth = sqrt(max(1.0, num_simulations / 1000))
    return max(1, round(effort * min(MOST_STEPS, MAX_STEPS * growth)))


def _folds(num: int, num_folds: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows of each network's fold, and all others, both `(M, rows)`.

    Rows beyond a multiple of M are in no fold.
    """
    everything = torch.arange(num, device=device)
    folds = everything[: num - num % num_folds].view(-1, num_folds).T
    beyond = everything[num - num % num_folds :]
    rest = [
        torch.cat([*(fold for n, fold in enumerate(folds) if n != m), beyond])
        for m in range(num_folds)
    ]
    return folds.contiguous(), torch.stack(rest)
