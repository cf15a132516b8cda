r"""A simulator whose output scatters about a function of its parameters.

.. math:: r(\theta, x) = \log p(s | \theta) - c(x), \qquad
    p(s | \theta) = \frac1M \sum_m |U_m(\theta)| \;
        e_m\big(U_m(\theta) (s - \mu_m(\theta))\big)

is a synthetic likelihood (Wood 2010, Price et al. 2018) of summaries s of x. M networks
of $\theta$ give the location $\mu$ and the triangular matrix U, and e is the density of
the errors. Where errors have the same shape for all $\theta$, these networks have less to
learn than networks of both $\theta$ and x.

- `summaries`: s, entries of x or their principal components.
- `errors`: the kinds of e and of U that are tried.
- `ensemble`: the M networks and their training.
- `model`: the log-ratio.
"""

from sbi_jeffreys.pool.synthetic_likelihood.model import SyntheticLikelihood

__all__ = ["SyntheticLikelihood"]
