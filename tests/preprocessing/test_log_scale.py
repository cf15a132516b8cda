"""Which entries are put on the log scale, and that observations off it stay finite."""

import pytest
import torch
from sbi.utils import BoxUniform
from scipy.stats import skew

from sbi_jeffreys import JNPE
from sbi_jeffreys.preprocessing.log_scale import LogScale, _skewness

NUM = 1000


def entries():
    torch.manual_seed(0)
    z = torch.randn(NUM)
    return {
        "lognormal": (z.exp(), True),
        "lognormal, tiny units": ((z - 20).exp(), True),
        "exponential": (-torch.rand(NUM).log(), True),
        "normal": (z, False),
        "normal, far from zero": (z + 100, False),
        "lognormal with a zero": (z.exp() * (torch.arange(NUM) > 0), False),
        "lognormal, negative": (-z.exp(), False),
        "uniform": (torch.rand(NUM), False),
        "constant": (torch.ones(NUM), False),
        "constant that sums are rounded of": (torch.full((NUM,), 0.1), False),
    }


@pytest.mark.parametrize("name", entries())
def test_which_entries_are_put_on_the_log_scale(name):
    """Each beside a normal one, in a matrix."""
    values, wants_log = entries()[name]
    x = torch.stack([values, torch.randn(NUM)], -1).unsqueeze(1)
    out = LogScale(x)(x)
    assert torch.equal(out[..., 0], x[..., 0].log() if wants_log else x[..., 0])
    assert torch.equal(out[..., 1], x[..., 1])


def test_skewness_is_scipys():
    torch.manual_seed(0)
    x = torch.randn(200, 3).double().exp()
    want = torch.as_tensor(skew(x.numpy()))
    torch.testing.assert_close(_skewness(x), want)


def test_observations_that_are_not_positive_stay_finite():
    x = torch.randn(NUM, 2).exp()
    x_o = torch.tensor([[0.0, 1.0], [-3.0, 1.0]], requires_grad=True)
    out = LogScale(x)(x_o)
    assert out.isfinite().all()
    (gradient,) = torch.autograd.grad(out.sum(), x_o)
    assert gradient.isfinite().all()


def test_units_of_positive_entries_do_not_matter():
    """Multiplied by 1,000 they give the same networks, as logarithms are then only
    shifted, up to rounding. Emulated pairs are drawn by rejection, which amplifies
    roundings, so there is no pool."""
    torch.manual_seed(0)
    theta = 2 * torch.rand(300, 1)
    x = (theta + 0.3 * torch.randn(300, 2)).exp()
    posteriors = []
    for unit in (1.0, 1000.0):
        torch.manual_seed(1)
        trainer = JNPE(BoxUniform(torch.zeros(1), 2 * torch.ones(1)), pool=False)
        trainer.append_simulations(theta, unit * x)
        flow = trainer.train(max_num_epochs=3)
        with torch.no_grad():
            log_probs = flow.log_prob(theta[:50].unsqueeze(0), unit * x[:50])
        posteriors.append(log_probs)
    torch.testing.assert_close(*posteriors, rtol=1e-2, atol=1e-2)
