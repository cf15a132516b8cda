import pytest
import torch
from sbi.utils import BoxUniform
from scipy.stats import kstest, uniform

from sbi_jeffreys.sampling.rejection import MOST_DRAWS, Rejection

PRIOR = BoxUniform(torch.zeros(1), torch.ones(1))
X = torch.tensor([[1.0], [0.5], [0.1]])


class Wide:
    """Uniform draws of [0, 1/x]: the share x of them is inside the prior."""

    def __init__(self):
        self.shapes = []

    def __call__(self, shape, x):
        self.shapes.append((*shape, len(x)))
        return torch.rand(*shape, len(x), 1) / x


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_accepted_draws_have_the_distribution_inside(size):
    """Three tests of Kolmogorov and Smirnov at 1e-5: one run in 30,000 fails."""
    torch.manual_seed(0)
    draw = Wide()
    samples = Rejection(draw, PRIOR).sample(400, X, size)
    assert samples.shape == (400, 3, 1)
    for column in samples[..., 0].T:
        assert kstest(column.numpy(), uniform.cdf).pvalue > 1e-5
    assert max(num * batch for num, batch in draw.shapes[1:]) <= max(size, len(X))
    assert draw.shapes[-1][1] < len(X)  # the first was complete at once


def test_the_acceptance_is_estimated_and_remembered():
    """The tolerance is five standard errors: one run in 1e6 fails."""
    torch.manual_seed(0)
    draw = Wide()
    rejection = Rejection(draw, PRIOR)
    rates = rejection.acceptance(X, 10_000, 5_000)
    error = 5 * (X[:, 0] * (1 - X[:, 0]) / 10_000).sqrt()
    assert ((rates - X[:, 0]).abs() <= error).all()
    num = len(draw.shapes)
    assert torch.equal(rejection.acceptance(X, 10_000, 5_000), rates)
    assert len(draw.shapes) == num
    rejection.acceptance(X, 10_000, 5_000, force_update=True)
    assert len(draw.shapes) > num


def test_a_low_acceptance_is_said_once_and_one_of_zero_raises():
    torch.manual_seed(0)
    draw = Wide()
    rejection = Rejection(draw, PRIOR)
    with pytest.warns(UserWarning, match=r"Only 0\..*% of the flow's draws are inside"):
        assert len(rejection.sample(20, torch.tensor([[0.002]]), 1_000)) == 20
    rejection.sample(20, torch.tensor([[0.002]]), 1_000)
    never = torch.tensor([[1.0], [1e-12]])
    draw.shapes.clear()
    with pytest.raises(RuntimeError, match=r"Only 0 of 1.* draws .* inside the prior"):
        rejection.sample(20, never, 10_000)
    assert sum(num for num, _ in draw.shapes) < MOST_DRAWS + 20_000
    with pytest.raises(RuntimeError, match="inside the prior for 1 of 2 observations"):
        rejection.acceptance(never, 1_000, 1_000)
