"""Warnings of both posteriors point at the line that called them, and come once."""

import warnings

import pytest
import torch

from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior
from sbi_jeffreys.posteriors.trust import TrustCheck
from sbi_jeffreys.sampling import halves
from tests.closed_forms import ConjugateGaussian

TASK = ConjugateGaussian(dim=2)
_, X = TASK.simulate(300, seed=1)
QUIET = {"show_progress_bars": False}
FAR = torch.tensor([[30.0, 30.0]])


def make_posterior(width=1.0):
    return EnergyPosterior(TASK.pair(width), TASK.prior, Novelty(X))


CALLS = {
    "sample": (0.15, lambda p: p.sample((500,), x=X[:1], **QUIET)),
    "sample_batched": (0.15, lambda p: p.sample_batched((500,), X[:3], **QUIET)),
    "agreement": (0.15, lambda p: p.agreement(X[:3])),
    "an unusual x": (1.0, lambda p: p.sample((5,), x=FAR, **QUIET)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_points_at_the_call_and_comes_once(name, monkeypatch):
    """With a rule by which no halves agree."""
    monkeypatch.setattr(halves, "MAX_GAP", -1.0)
    torch.manual_seed(0)
    width, call = CALLS[name]
    posterior = make_posterior(width)
    with pytest.warns(UserWarning, match="This warning is given once") as record:
        call(posterior)
    assert [warning.filename for warning in record] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(posterior)


def test_of_many_observations_no_single_one_is_called_unusual():
    """p is at least 1 / 151 here, and ten times as much is above 0.01."""
    check = TrustCheck(None, TASK.prior, Novelty(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check.warn_of_unusual(torch.cat([X[:9], FAR]))
        TrustCheck(None, TASK.prior, None).warn_of_unusual(FAR)
    with pytest.warns(UserWarning, match=r"x is unlike the simulations \(p = 0.007\)"):
        check.warn_of_unusual(FAR)


@pytest.mark.parametrize("num", [118, 120])
def test_an_unusual_x_is_known_among_enough_simulations(num):
    check = TrustCheck(None, TASK.prior, Novelty(X[:num]))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check.warn_of_unusual(FAR)
    assert len(found) == (num == 120)


def test_without_an_energy_there_is_nothing_to_compare():
    with pytest.raises(RuntimeError, match="no energy to compare with"):
        TrustCheck(None, TASK.prior, None).report(X, 1000, 1000)
