r"""A simulator whose output scatters about a function of its parameters.

.. math:: r(\theta, x) = \log p(s | \theta) - c(x), \qquad
    p(s | \theta) = \frac1M \sum_m |U_m(\theta)| \;
        e_m\big(U_m(\theta) (s - \mu_m(\theta))\big)

with s the features of x, and e the density of the errors. It is a synthetic likelihood
(Wood 2010, Price et al. 2018) with networks of $\theta$ for the location $\mu$ and the
triangular U. Where errors have one shape for all $\theta$, the networks have less to
learn than those of both $\theta$ and x. That shape is

.. math:: e(z) = \sum_c \pi_c \, |L_c| \; t_\nu\big(L_c (z - b_c)\big)

with t the standard multivariate density of Student, whose tails, heavier than a
Gaussian's, forgive a location that is somewhat wrong: t alone, or, where s has few
entries, a mixture, whichever fits the folds better.

Each of the M networks is fitted by maximum likelihood to the simulations but a fold of
its own, until it fits that no better.

Features are taken one by one, for errors of measurement are often independent, and U is
then diagonal; in other directions it would have the more to learn, the more the errors'
size depends on the parameters. But where features are many, or some are linear functions
of others, s are their leading principal components. A U that is diagonal whatever the
parameters is tried as well: d functions of them, instead of d (d + 1) / 2. Features that
are counts, or other multiples of a step, are fitted with uniform noise of that width, for
a density may be as high as it likes at values that repeat (Uria et al., arXiv:1306.0186).
Other values that many simulations share, where x is censored, or small counts on a log
scale (`log_scale`), are taken for values of a density, and the likelihood is wrong there.
"""

from math import log, pi, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu
from typing_extensions import Self

from sbi_jeffreys.pool.evidence import Evidence

NUM_MEMBERS = 5
"""Networks M, at most one for each simulation."""

MAX_FEATURES = 20
"""Entries of s, at most; also a tenth of simulations."""

LEAST_SPREAD = 0.02
"""Least standard deviation of a feature, over the largest, and of a principal component:
more than `screening` leaves of entries of x that are unrelated to the parameters."""

HIDDEN_FEATURES = 64
"""Width of the networks."""

NUM_BLOCKS = 2
"""Residual blocks, of one layer each."""

BATCH_SIZE = 200
"""Simulations in a batch, drawn with replacement."""

AVERAGING = 0.98
"""Weight of the past in the moving average of the weights."""

CHECK_EVERY, PATIENCE, MAX_STEPS = 5, 250, 5000
"""Steps from one look at the folds to the next, without better fit of any before training
stops, and at most."""

LEAST_VARIANCE = 1e-6
"""Added to that of the errors in any direction, before they are scaled to one: the
fraction of the mean variance of s."""

MAX_STEP_NUMBER = 10_000
"""Steps from the least value of a feature to the largest."""

CHUNK = 8192
"""Rows that the networks look at together."""


class ErrorModel(NamedTuple):
    """What errors are like, and what keeps the networks from memorising simulations.

    Attributes:
        num_components: Components of the mixture.
        is_diagonal: Whether U is.
        dropout: Fraction of activations dropped in each block while training.
        weight_decay: A step shrinks the weights of the networks' layers by the product
            of this and the learning rate, over the number of simulations.
        learning_rate: Of AdamW.
    """

    num_components: int = 1
    is_diagonal: bool = False
    dropout: float = 0.2
    weight_decay: float = 1000.0
    learning_rate: float = 2e-3


CORRELATED = ErrorModel()

MIXTURE = ErrorModel(num_components=16, dropout=0.0, weight_decay=100.0)
"""Thin errors tell more of their location than round ones: networks may be freer."""

UNCORRELATED = ErrorModel(is_diagonal=True)

SMALL = ErrorModel(is_diagonal=True, dropout=0.03, weight_decay=10.0, learning_rate=0.01)
"""So do small ones; and locations that precise are far from where the networks start."""

ERROR_MODELS = (CORRELATED, MIXTURE, UNCORRELATED, SMALL)
"""Of which the one that fits the folds best is kept."""

SPREAD = 0.7
"""Of the centers of a mixture's components, at first, and of each component."""

MAX_MIXED = 5
"""Entries of s with which a mixture is tried."""


class SyntheticLikelihood(nn.Module):
    r"""The log-ratio $\log p(s(x) | \theta) - c(x)$."""

    center: Tensor
    projection: Tensor

    def __init__(
        self,
        center: Tensor,
        projection: Tensor,
        input_features: int,
        num_members: int,
        error_model: ErrorModel,
    ) -> None:
        r"""
        Args:
            center: Mean of the features of x, shape `(features,)`.
            projection: From features to s, shape `(features, d)`.
            input_features: Number of parameters.
            num_members: Networks M.
            error_model: Of s about its location.
        """
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("projection", projection)
        num = projection.shape[1]
        self.members = LikelihoodMembers(num_members, input_features, num, error_model)
        self.evidence = Evidence(num)

    @classmethod
    def fit(
        cls,
        candidates: Tensor,
        features: Tensor,
        log_weights: Tensor,
        like: Self | None = None,
    ) -> Self:
        r"""Fit the members, in single precision, to pairs, and c to log Z.

        Args:
            candidates: Standardised parameters, shape `(1 + K, N, D)`: those of each
                pair, then K draws of a proposal given its x.
            features: Of x, shape `(N, features)`.
            log_weights: $\log p - \log proposal$ in nats, shape `(1 + K, N)`.
            like: A model with the errors to assume; without it all kinds are tried.

        Returns:
            The model, on the device and in the precision of `candidates`.
        """
        kind = candidates.dtype
        candidates, features, log_weights = (
            values.float() for values in (candidates, features, log_weights)
        )
        theta, num = candidates[0], len(features)
        center, projection, slopes = _summaries(theta.double(), features.double())
        num_members = min(NUM_MEMBERS, num)
        smooth = features
        if int(projection.count_nonzero(0).max()) == 1:  # s are entries
            smooth = _dequantized(features)
        d = projection.shape[1]
        kinds = [
            kind
            for kind in ERROR_MODELS
            if (d <= MAX_MIXED or kind.num_components == 1)
            and (d > 1 or kind != UNCORRELATED)  # then the same as CORRELATED
        ]
        fits = []
        for error_model in kinds if like is None else [like.members.error_model]:
            model = cls(center, projection, theta.shape[1], num_members, error_model)
            s = model.to(features).summaries(smooth)
            with torch.enable_grad():
                fits.append((model.members.fit(theta, s, slopes.to(s)), model))
        _, model = min(fits, key=lambda fit: fit[0])
        model.eval().requires_grad_(False)
        log_weights = log_weights + model(candidates, features)
        model.evidence.fit(model.summaries(features), log_weights[1:])
        return model.to(kind)

    def summaries(self, condition: Tensor) -> Tensor:
        """Return s, shape `(batch, d)`, of features of x, shape `(batch, ...)`."""
        return (condition.flatten(1) - self.center) @ self.projection

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratio in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Features of x, shape `(batch, features)`.
        """
        s = self.summaries(condition)
        num = self.members.num
        rows = input.flatten(0, 1), s.expand(len(input), -1, -1).flatten(0, 1)
        log_likelihood = torch.cat(
            [
                self.members(*(values.expand(num, -1, -1) for values in some))
                .logsumexp(0)
                .sub(log(num))
                for some in zip(*(values.split(CHUNK) for values in rows), strict=True)
            ]
        )
        return log_likelihood.reshape(input.shape[:-1]) - self.evidence(s)


def _summaries(theta: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what gives s unit errors about a linear function of the parameters.

    Args:
        theta: Shape `(N, D)`.
        features: Shape `(N, features)`.

    Returns:
        Mean of the features; projection from them to s, shape `(features, d)`; and
        coefficients of the linear function, shape `(D + 1, d)`, that of one last.
    """
    num, center = len(features), features.mean(0)
    sizes = (features - center).norm(dim=0)
    varying = sizes >= LEAST_SPREAD * sizes.max()
    kept = (features - center)[:, varying]
    _, spreads, directions = torch.linalg.svd(kept, full_matrices=False)
    count = int((spreads > LEAST_SPREAD * spreads[0]).sum())
    most = max(1, min(MAX_FEATURES, num // 10))
    are_entries = int(varying.sum()) == count <= most
    num_kept = max(1, min(count, most))
    rows = features.new_zeros(num_kept, len(sizes))
    rows[:, varying] = torch.eye(count).to(kept) if are_entries else directions[:num_kept]
    s = (features - center) @ rows.T
    design = torch.cat([theta, torch.ones_like(theta[:, :1])], 1)
    slopes = torch.linalg.pinv(design) @ s
    residuals = s - design @ slopes
    least = LEAST_VARIANCE * s.square().mean() + torch.finfo(torch.float32).tiny
    covariance = residuals.T @ residuals / num + least * torch.eye(s.shape[1]).to(s)
    if are_entries:
        covariance = covariance.diagonal().diag_embed()
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    return center, rows.T @ whiten, slopes @ whiten


def _dequantized(features: Tensor) -> Tensor:
    """Return features `(N, features)`, with noise where they are multiples of a step.

    Only where some values repeat, and rounding can't make multiples of any numbers.
    """
    steps = torch.stack([_step(values) for values in features.double().T])
    if not bool(steps.any()):
        return features
    return features + steps.to(features) * (torch.rand_like(features) - 0.5)


def _step(values: Tensor) -> Tensor:
    """Return the step of which values, shape `(N,)`, are multiples, or 0."""
    gaps = values.unique().diff()
    none = values.new_zeros(())
    if not 0 < len(gaps) < len(values) - 1:
        return none
    multiples = gaps / gaps.min()
    is_step = multiples.sum() < MAX_STEP_NUMBER and torch.allclose(
        multiples, multiples.round(), rtol=0.0, atol=0.01
    )
    return gaps.min() if is_step else none


class LikelihoodMembers(nn.Module):
    r"""The M densities $p_m(s | \theta)$, side by side."""

    entries: Tensor

    def __init__(
        self, num: int, input_features: int, output_features: int, error_model: ErrorModel
    ) -> None:
        r"""
        Args:
            num: M.
            input_features: Number of parameters.
            output_features: Entries d of s.
            error_model: Of s about its location.
        """
        super().__init__()
        self.num = num
        self.output_features = dim = output_features
        self.error_model = error_model
        num_below = 0 if error_model.is_diagonal else dim * (dim - 1) // 2
        self.linear = MemberLinear(num, input_features, dim)
        self.first = MemberLinear(num, input_features, HIDDEN_FEATURES)
        self.blocks = nn.ModuleList(
            MemberLinear(num, HIDDEN_FEATURES, HIDDEN_FEATURES) for _ in range(NUM_BLOCKS)
        )
        self.last = MemberLinear(num, HIDDEN_FEATURES, 2 * dim + num_below, gain=0.1)
        self.errors = StudentMixture(num, dim, error_model.num_components)
        if not error_model.is_diagonal:
            # Where each entry of U is among its diagonal, those below it, and a zero.
            entries = torch.full((dim, dim), dim + num_below)
            entries = entries.diagonal_scatter(torch.arange(dim))
            below = torch.tril_indices(dim, dim, -1)
            entries[below[0], below[1]] = dim + torch.arange(num_below)
            self.register_buffer("entries", entries.flatten())

    def forward(self, theta: Tensor, s: Tensor) -> Tensor:
        r"""Return $\log p_m(s | \theta)$ in nats, shape `(M, N)`.

        Args:
            theta: Standardised parameters, shape `(M, N, D)`.
            s: Whitened summaries, shape `(M, N, d)`.
        """
        hidden = self.first(theta)
        for block in self.blocks:
            hidden = hidden + block(
                dropout(silu(hidden), self.error_model.dropout, self.training)
            )
        dim = self.output_features
        mean, log_diagonal, below = self.last(silu(hidden)).tensor_split(
            (dim, 2 * dim), -1
        )
        z = s - mean - self.linear(theta)
        if self.error_model.is_diagonal:
            z = log_diagonal.exp() * z
        else:
            parts = torch.cat(
                [log_diagonal.exp(), below, torch.zeros_like(mean[..., :1])], -1
            )
            root = parts.index_select(-1, self.entries).unflatten(-1, (dim, dim))
            z = (root @ z.unsqueeze(-1)).squeeze(-1)
        return self.errors(z) + log_diagonal.sum(-1)

    def fit(self, theta: Tensor, s: Tensor, slopes: Tensor) -> float:
        """Fit each member to the pairs but a fold, of which the best weights are kept.

        Args:
            theta: Standardised parameters, shape `(N, D)`.
            s: Whitened summaries, shape `(N, d)`.
            slopes: Of the regression of s on theta and one, shape `(D + 1, d)`, to start.

        Returns:
            The mean loss of the members on their folds, in nats.
        """
        with torch.no_grad():
            self.linear.weight.copy_(slopes[:-1])
            self.linear.bias.copy_(slopes[-1])
        size = len(theta) // self.num
        order = torch.randperm(len(theta), device=theta.device)
        rolled = torch.stack([order.roll(m * size) for m in range(self.num)])
        fold, rest = rolled[:, :size], rolled[:, size:]

        layers: list[Any] = [self.first, *self.blocks, self.last]
        shrunk = [layer.weight for layer in layers]
        others = [*(layer.bias for layer in layers), *self.linear.parameters()]
        others += self.errors.parameters()
        weight_decay = self.error_model.weight_decay / len(theta)
        optimizer = torch.optim.AdamW(
            shrunk, lr=self.error_model.learning_rate, weight_decay=weight_decay
        )
        optimizer.add_param_group({"params": others, "weight_decay": 0.0})
        latest = [p.detach() for p in self.parameters()]
        average = [p.clone() for p in latest]
        best = [p.clone() for p in latest]
        best_loss = theta.new_full((self.num,), torch.inf)
        last_gain = 0
        for step in range(1, MAX_STEPS + 1):
            rows = rest.gather(1, torch.randint_like(rest[:, :BATCH_SIZE], rest.shape[1]))
            loss = -self(theta[rows], s[rows]).mean(1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            torch._foreach_lerp_(average, latest, max(1 - AVERAGING, 9 / (8 + step)))
            if step % CHECK_EVERY == 0:
                losses = self._losses(average, theta[fold], s[fold])
                better = losses < best_loss
                best_loss = torch.where(better, losses, best_loss)
                for kept, values in zip(best, average, strict=True):
                    kept[better] = values[better]
                last_gain = step if bool(better.any()) else last_gain
                if step - last_gain >= PATIENCE:
                    break
        for parameter, values in zip(latest, best, strict=True):
            parameter.copy_(values)
        self.zero_grad()
        return float(best_loss.mean())

    @torch.no_grad()
    def _losses(self, weights: list[Tensor], theta: Tensor, s: Tensor) -> Tensor:
        """Return the mean loss of each member with these weights, shape `(M,)`."""
        named = dict(zip(dict(self.named_parameters()), weights, strict=True))
        self.eval()
        log_likelihood = torch.func.functional_call(self, named, (theta, s))
        self.train()
        return -log_likelihood.mean(1)


class StudentMixture(nn.Module):
    r"""$\log e_m(z)$, for each of M members."""

    def __init__(self, num: int, features: int, num_components: int) -> None:
        """
        Args:
            num: M.
            features: Entries d of z.
            num_components: C; a single one is standard, but for its tails.
        """
        super().__init__()
        self.log_freedom = nn.Parameter(torch.full((num, 1), 2.0))
        self.components: nn.ParameterDict | None = None
        if num_components > 1:
            self.components = nn.ParameterDict(
                {
                    "logits": torch.zeros(num, 1, num_components),
                    "centers": SPREAD * torch.randn(num, 1, num_components, features),
                    "roots": torch.zeros(num, num_components, features, features),
                    "log_diagonals": torch.full(
                        (num, num_components, features), log(1 / SPREAD)
                    ),
                }
            )

    def forward(self, z: Tensor) -> Tensor:
        """Return log densities in nats, shape `(M, N)`, of errors `(M, N, d)`."""
        if self.components is None:
            return self._student(z, self.log_freedom)
        log_shares = self.components["logits"].log_softmax(-1)
        log_diagonals = self.components["log_diagonals"]
        roots = self.components["roots"].tril(-1) + log_diagonals.exp().diag_embed()
        z = z.unsqueeze(2) - self.components["centers"]
        z = (roots.unsqueeze(1) @ z.unsqueeze(-1)).squeeze(-1)
        log_scales = log_diagonals.sum(-1).unsqueeze(1)
        log_t = self._student(z, self.log_freedom.unsqueeze(-1))
        return (log_shares + log_scales + log_t).logsumexp(-1)

    @staticmethod
    def _student(z: Tensor, log_freedom: Tensor) -> Tensor:
        dim, nu = z.shape[-1], 1 + log_freedom.exp()
        half = (nu + dim) / 2
        return (
            torch.lgamma(half)
            - torch.lgamma(nu / 2)
            - dim / 2 * (log(pi) + nu.log())
            - half * torch.log1p(z.square().sum(-1) / nu)
        )


class MemberLinear(nn.Module):
    """A linear layer for each of M members."""

    def __init__(
        self, num: int, input_features: int, output_features: int, gain: float = 1.0
    ) -> None:
        """
        Args:
            num: M.
            input_features: Entries of its input.
            output_features: Entries of its output.
            gain: Standard deviation of an output, at first, for inputs of unit variance.
        """
        super().__init__()
        std = gain / sqrt(input_features)
        self.weight = nn.Parameter(
            std * torch.randn(num, input_features, output_features)
        )
        self.bias = nn.Parameter(torch.zeros(num, 1, output_features))

    def forward(self, input: Tensor) -> Tensor:
        """Return outputs `(M, N, output_features)` of `(M, N, input_features)`."""
        return torch.baddbmm(self.bias, input, self.weight)
