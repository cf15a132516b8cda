"""Rejection of draws outside of a prior, with a bounded number of tries."""

import warnings
from collections.abc import Callable
from math import ceil

import torch
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution

from sbi_jeffreys.sampling.blocks import blocks

MOST_DRAWS, MOST_DRAWS_PER_SAMPLE = 100_000, 1_000
"""Draws for each observation after which sampling gives up: the first number, and the
second number times that of the samples."""

LOW_ACCEPTANCE = 0.01
"""Share of draws inside the prior below which a warning is given."""


def is_inside(prior: Distribution, theta: Tensor) -> Tensor:
    """Return whether parameters, `(..., D)`, are inside a prior's support, `(...)`."""
    rows = theta.reshape(-1, theta.shape[-1])
    return within_support(prior, rows).reshape(theta.shape[:-1])


class Rejection:
    """The draws of a flow, or of another density given x, that are inside a prior."""

    def __init__(
        self, draw: Callable[[torch.Size, Tensor], Tensor], prior: Distribution
    ) -> None:
        """
        Args:
            draw: Maps `(num,)` and observations, `(batch, *condition_shape)`, to draws,
                `(num, batch, D)`.
            prior: Draws have to be inside its support.
        """
        self.draw, self.prior = draw, prior
        self._known: tuple[Tensor, int, Tensor] | None = None
        self._has_warned = False

    @torch.no_grad()
    def sample(self, num: int, x: Tensor, size: int) -> Tensor:
        """Draw until there are enough samples for each observation.

        A warning is given once where fewer than one in a hundred draws is accepted.

        Args:
            num: Number of samples for each observation.
            x: Observations, shape `(batch, *condition_shape)`.
            size: Most draws at a time, over all observations together, but at least one
                for each.

        Returns:
            Samples, shape `(num, batch, D)`.

        Raises:
            RuntimeError: If the draws for some observation are used up.
        """
        samples = self.draw(torch.Size((num,)), x)
        inside = is_inside(self.prior, samples)
        accepted, drawn = inside.sum(0), torch.full_like(inside.sum(0), num)
        while not bool(inside.all()):
            columns = (~inside.all(0)).nonzero()[:, 0]
            rates = (accepted / drawn)[columns]
            self._check(accepted[columns], drawn[columns], num)
            missing = ~inside[:, columns]
            wanted = 1.2 * missing.sum(0) / rates.clamp(min=LOW_ACCEPTANCE)
            num_more = max(1, min(size // len(columns), ceil(float(wanted.max()))))
            more = self.draw(torch.Size((num_more,)), x[columns])
            is_good = is_inside(self.prior, more)
            accepted[columns] += is_good.sum(0)
            drawn[columns] += num_more
            # The n-th missing sample of a column becomes the n-th good draw in it.
            order = is_good.int().argsort(dim=0, descending=True, stable=True)
            rank = missing.cumsum(0) - 1
            filled = missing & (rank < is_good.sum(0))
            source = order.take_along_dim(rank.clamp(0, num_more - 1), 0)
            new = more.take_along_dim(source.unsqueeze(-1), 0)
            old = samples[:, columns]
            samples[:, columns] = torch.where(filled.unsqueeze(-1), new, old)
            inside[:, columns] |= filled
        self._warn(accepted / drawn)
        return samples

    @torch.no_grad()
    def acceptance(
        self, x: Tensor, num: int, size: int, force_update: bool = False
    ) -> Tensor:
        """Return the share of draws that is inside the prior, shape `(batch,)`.

        It is remembered for the last observations.

        Args:
            x: Observations, shape `(batch, *condition_shape)`.
            num: Number of draws for each observation.
            size: Most draws at a time, over all observations together.
            force_update: Whether to estimate it again.

        Raises:
            RuntimeError: If no draw for some observation is inside the prior.
        """
        if self._known is not None and not force_update:
            known, known_num, acceptance = self._known
            if known_num >= num and torch.equal(known, x):
                return acceptance
        inside = torch.zeros(len(x), device=x.device)
        for rows, columns in blocks(num, len(x), size):
            draws = self.draw(torch.Size((len(range(num)[rows]),)), x[columns])
            inside[columns] += is_inside(self.prior, draws).sum(0)
        if not bool(inside.all()):
            raise RuntimeError(
                f"None of {num:,} draws of the flow is inside the prior for "
                f"{int((inside == 0).sum())} of {len(x)} observations, so its density "
                "cannot be normalised. `norm_posterior=False` leaves that out."
            )
        self._known = x, num, inside / num
        return inside / num

    def _check(self, accepted: Tensor, drawn: Tensor, num: int) -> None:
        used_up = drawn >= max(MOST_DRAWS, MOST_DRAWS_PER_SAMPLE * num)
        if bool(used_up.any()):
            raise RuntimeError(
                f"Only {int(accepted[used_up].min())} of {int(drawn[used_up].max()):,} "
                "draws of the flow are inside the prior, for at least one observation, "
                f"and {num:,} samples were asked for. The flow is not to be trusted "
                "there. `agreement(x)` tells whether x is like the simulations; more "
                "simulations or `reject_outside_prior=False` may help."
            )

    def _warn(self, rates: Tensor) -> None:
        if self._has_warned or not bool((rates < LOW_ACCEPTANCE).any()):
            return
        self._has_warned = True
        warnings.warn(
            f"Only {float(rates.min()):.2%} of the flow's draws are inside the prior for "
            "at least one observation. The flow has learned little there, and sampling "
            "is slow. This warning is given once.",
            stacklevel=5,
        )
