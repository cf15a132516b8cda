"""The conditional energy-based model: log prior plus a learned log-ratio."""

import warnings
from copy import deepcopy
from typing import Any

import torch
from sbi.utils.sbiutils import ImproperEmpirical
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn.functional import silu
from typing_extensions import Self

from sbi_jeffreys.models.networks import ContextNet, zero_init
from sbi_jeffreys.preprocessing.scaling import location_and_scale
from sbi_jeffreys.preprocessing.support import Support


class LogRatioNet(nn.Module):
    r"""The default log-ratio network, zero at initialisation.

    .. math:: r(\theta, x) = \theta^T (A x + a) + \theta^T B \theta + m(\theta, x)

    with a residual MLP m. The first terms are all there is, up to a function of
    $\theta$, where the likelihood is an exponential family with statistics x.
    """

    def __init__(
        self,
        input_features: int,
        condition_features: int,
        hidden_features: int = 128,
        num_blocks: int = 2,
    ) -> None:
        """
        Args:
            input_features: Number of parameters.
            condition_features: Number of (embedded) features of x.
            hidden_features: Width of the MLP.
            num_blocks: Number of residual blocks, of two layers each.
        """
        super().__init__()
        self.linear = zero_init(nn.Linear(condition_features, input_features))
        self.quadratic = zero_init(nn.Linear(input_features, input_features, bias=False))
        self.net = ContextNet(
            input_features, condition_features, hidden_features, num_blocks, silu
        )
        self.head = zero_init(nn.Linear(hidden_features, 1))

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return r in nats, shape `(sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, input_features)`.
            condition: Embedded conditions, shape `(batch, condition_features)`.
        """
        natural = self.linear(condition) + self.quadratic(input)
        rows = input.flatten(0, 1)
        rest = self.head(self.net(rows, self.net.from_context(condition)))
        return (input * natural).sum(-1) + rest.reshape(input.shape[:-1])


class LogRatioEnsemble(nn.ModuleList):
    """Log-ratio networks that share nothing, of which the energy is the average."""

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the log-ratios in nats, shape `(member, sample, batch)`.

        Args:
            input: Standardised parameters, shape `(sample, batch, D)`.
            condition: Embedded conditions, shape `(batch, features)`.
        """
        return torch.stack([net(input, condition) for net in self])


class ConditionalEnergy(nn.Module):
    r"""$f(\theta, x) = \log p(\theta) + r(\theta, x)$, an unnormalised log posterior.

    The model is $q(\theta | x) = e^{f(\theta, x)} / Z(x)$; its energy, in the sense of
    physics, is $-f$. With p the prior, r learns the log-ratio
    $\log p(x | \theta) / p(x)$, and $Z = 1$ where it has. The network sees $\theta$
    standardised in its own space, where r is smooth whatever the edges of the prior; but
    parameters on a half line, which may have long tails, on their log scale.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        base: Distribution,
        support: Support,
        theta: Tensor,
        embedding_net: nn.Module,
        condition_shape: torch.Size,
        prior: Distribution | None = None,
        least_log_prior: float = -torch.inf,
    ) -> None:
        """
        Args:
            net: r, called with standardised parameters, `(sample, batch, D)`, and
                embedded conditions, `(batch, features)`; returns `(sample, batch)`, or
                as `LogRatioEnsemble` `(member, sample, batch)`: r is then their average.
            base: p, with a `log_prob` that is differentiable to its argument.
            support: Its bounds; p is evaluated inside of them.
            theta: Parameters that give the standardisation, shape `(N, D)`.
            embedding_net: Embeds conditions, `(batch, *condition_shape)`.
            condition_shape: Shape of one condition.
            prior: Of the simulations trained on, whether it is the base or not; None if
                there is none with a density.
            least_log_prior: To take the prior's log density for, where it is less; in
                nats.
        """
        super().__init__()
        self.net = net
        self.base = base
        self.support = support
        self.embedding_net = embedding_net
        self.condition_shape = condition_shape
        self.prior = prior
        self.least_log_prior = least_log_prior
        loc, scale = location_and_scale(support.log_half_lines(theta))
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move the densities, which are no modules, along with the parameters."""
        before = self.loc.device
        super()._apply(fn, recurse)
        if self.loc.device != before:
            self.base = move_distribution_to_device(self.base, self.loc.device)
            if self.prior is not None:
                self.prior = move_distribution_to_device(self.prior, self.loc.device)
        return self

    def standardize(self, theta: Tensor) -> Tensor:
        """Return parameters `(..., D)` inside of the support as the network sees them."""
        return (self.support.log_half_lines(theta) - self.loc) / self.scale

    def forward(
        self, input: Tensor, condition: Tensor, embedded: Tensor | None = None
    ) -> Tensor:
        """Return f in nats, shape `(sample, batch)`; not a normalised log density.

        Minus infinity outside of the prior's bounds.

        Args:
            input: Parameters, shape `(sample, batch, D)` or `(sample, 1, D)`.
            condition: Data, shape `(batch, ...)`.
            embedded: What `embedding_net` makes of them, where it is known already.

        Raises:
            ValueError: If the batches do not match, or the network returns another shape.
        """
        return self.members(input, condition, embedded).mean(0)

    def members(
        self, input: Tensor, condition: Tensor, embedded: Tensor | None = None
    ) -> Tensor:
        """Return the f of each member, shape `(member, sample, batch)`; see `forward`."""
        batches, dim = (1, len(condition)), len(self.loc)
        if input.ndim != 3 or input.shape[1] not in batches or input.shape[2] != dim:
            raise ValueError(
                f"Expected `input` of shape (sample, batch, {dim}), with the batch of "
                f"`condition` or 1, got {tuple(input.shape)} for {len(condition)} "
                "conditions."
            )
        input = input.expand(-1, len(condition), -1)
        inside = self.support.inside(input)
        log_base = self.base.log_prob(inside.flatten(0, 1)).reshape(input.shape[:-1])
        standardized = self.standardize(inside)
        if embedded is None:
            embedded = self.embedding_net(condition)
        r = self.net(standardized, embedded)
        if r.shape[-2:] != log_base.shape or r.ndim > 3:
            raise ValueError(
                f"Expected `net` to return shape {tuple(log_base.shape)}, or that of "
                f"several members, (member, sample, batch), got {tuple(r.shape)}."
            )
        r = r.reshape(-1, *log_base.shape)
        return torch.where(self.support.is_outside(input), -torch.inf, log_base + r)


def base_density(prior: Any, theta: Tensor, support: Support) -> Distribution:
    """Return the prior if its density can be used, else a Gaussian fitted to `theta`.

    The reverse KL divergence needs the log density and its gradient wherever a sample of
    the flow may be. A prior without (improper, empirical, computed outside of torch, or
    zero in places where its support says it is not) is replaced, the last two with a
    warning.

    Args:
        prior: A distribution over `(D,)`, or None.
        theta: Parameters inside of its support, shape `(N, D)`.
        support: The map from `theta` to unconstrained space.
    """
    if prior is None or isinstance(prior, ImproperEmpirical) or not support.is_exact:
        return _gaussian(theta)
    points = theta.detach().clone().requires_grad_()
    try:
        log_prob = prior.log_prob(points)
    except (RuntimeError, TypeError):  # as numpy does with tensors that need gradients
        log_prob = prior.log_prob(theta).detach()
    flat = bool((log_prob == log_prob[0]).all())
    axes = torch.eye(theta.shape[-1]).to(theta)
    far = torch.cat([step * axes for step in (-4.0, -2.0, 2.0, 4.0)])
    mixed = torch.stack([column.roll(d) for d, column in enumerate(theta.T)], -1)
    elsewhere = torch.cat([support.inverse(far)[0], mixed])
    everywhere = bool(prior.log_prob(elsewhere).isfinite().all())
    if everywhere and (log_prob.requires_grad or flat):
        return _unvalidated(prior)
    lack = "not differentiable by torch" if everywhere else "zero inside of its `support`"
    warnings.warn(
        f"The density of the prior ({type(prior).__name__}) is {lack}; the energy starts "
        "from a Gaussian instead.",
        stacklevel=2,
    )
    return _gaussian(theta)


def least_log_prior(prior: Any, base: Distribution, theta: Tensor) -> float:
    """Return the prior's least log density, in nats, to be divided out of an energy.

    An energy that starts from the prior has it in all places, and nothing is too little.
    Another knows of the prior where it was trained: divided by a density far less than
    that at any of its simulations, it would have its mode there.

    Args:
        prior: A distribution over `(D,)`, or None.
        base: Where the energy starts from.
        theta: Parameters trained on, shape `(N, D)`.
    """
    if prior is None:
        return -torch.inf
    log_prior, log_base = (p.log_prob(theta).reshape(-1) for p in (prior, base))
    return -torch.inf if torch.equal(log_prior, log_base) else float(log_prior.min())


def _unvalidated(prior: Distribution) -> Distribution:
    """Return a copy that does not check its arguments, for which a GPU has to wait."""
    prior = deepcopy(prior)
    parts = [prior]
    while parts:
        part = parts.pop()
        part._validate_args = False
        for value in vars(part).values():
            values = value if isinstance(value, list) else [value]
            parts += [inner for inner in values if isinstance(inner, Distribution)]
    return prior


def _gaussian(theta: Tensor) -> Distribution:
    loc, scale = location_and_scale(theta)
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
