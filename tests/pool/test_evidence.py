"""The log evidence, fitted by a function that is quadratic in each summary."""

import torch

from sbi_jeffreys.pool.evidence import Evidence


def test_quadratic_functions_are_found():
    torch.manual_seed(0)
    s = torch.randn(50, 3).double()
    log_z = 1 - 2 * s[:, 0] + 3 * s[:, 1].square() - s[:, 2]
    c = Evidence(3).double()
    assert bool((c(s) == 0).all())
    draws = torch.tensor([0.5, 1.0, 1.5]).double().log()[:, None]  # of mean 1
    torch.testing.assert_close(c.fit(s, log_z + draws)(s), log_z)
    fresh = torch.tensor([[1.0, 2.0, 3.0]]).double()
    torch.testing.assert_close(c(fresh), torch.tensor([1 - 2 + 12 - 3.0]).double())


def test_what_is_not_quadratic_is_fitted_by_least_squares():
    """Residuals are orthogonal to one, s and its square; collinear summaries do not
    matter."""
    torch.manual_seed(0)
    one = torch.randn(80, 1).double()
    s = torch.cat([one, 2 * one], 1)
    log_z = one[:, 0].exp()
    residuals = log_z - Evidence(2).double().fit(s, log_z[None])(s).detach()
    for term in (torch.ones(80).double(), s[:, 0], s[:, 0].square()):
        assert abs(float(residuals @ term)) < 1e-8
