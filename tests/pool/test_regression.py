"""Regressions: leave-one-out errors by hand, and outputs and inputs without variation."""

import pytest
import torch

from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.regression import lasso, least_squares, ridge
from tests.pool.test_linear_model import linear_simulations


def test_least_squares_with_linearly_dependent_inputs():
    """Residuals are orthogonal to inputs and to one."""
    torch.manual_seed(0)
    theta, x = linear_simulations(50)
    inputs = torch.cat([theta, theta.sum(1, keepdim=True), torch.ones(50, 1)], 1)
    residuals = x - least_squares(x, inputs)(inputs)
    assert float((inputs.T @ residuals).abs().max()) < 1e-10


def test_leave_one_out_predictions_are_those_of_fits_without():
    theta, x = linear_simulations(30)
    _, predictions = ridge(theta, x)
    loc, scale = x.mean(0), x.std(0, correction=0)
    features, centred = (x - loc) / scale, theta - theta.mean(0)

    def left_out(penalty):
        rows = []
        for i in range(len(x)):
            rest = torch.arange(len(x)) != i
            a, b = features[rest], centred[rest]
            gram = a.T @ a + penalty * torch.eye(3, dtype=torch.float64)
            rows.append(features[i] @ torch.linalg.solve(gram, a.T @ b))
        return torch.stack(rows) + theta.mean(0)

    candidates = [left_out(30 * 10.0 ** (k / 2)) for k in range(-12, 6)]
    nearest = min(float((predictions - c).abs().max()) for c in candidates)
    assert nearest < 1e-9


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_of_a_parameter_that_does_not_vary_there_is_nothing_to_learn(value):
    theta, x = linear_simulations(60)
    theta[:, 1] = value
    predictions = lasso(theta, x)(x)
    torch.testing.assert_close(predictions[:, 1], theta[:, 1])
    pairs = Candidates.without_draws(theta, x)
    assert LinearModel.fit(pairs)(theta[None], x).isfinite().all()
