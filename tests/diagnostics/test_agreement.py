"""What is said about a Gaussian flow beside the exact posterior as the energy."""

import math
import warnings

import pytest
import torch

from sbi_jeffreys.diagnostics.agreement import report_agreement
from sbi_jeffreys.diagnostics.novelty import Novelty
from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from tests.closed_forms import ConjugateGaussian

TASK = ConjugateGaussian(dim=2)
THETA, X = TASK.simulate(500, seed=1)


def make_posterior(width=1.0, shift=0.0):
    return EnergyPosterior(TASK.pair(width, shift), TASK.prior, Novelty(X))


def exact_kl(width, shift, dim=2):
    """KL of N(shift, width²) to N(0, 1), in each dimension, in nats."""
    return dim * (0.5 * (width**2 + shift**2 - 1) - math.log(width))


@pytest.mark.parametrize(("width", "shift"), [(1.0, 0.3), (0.9, 0.0), (1.5, 0.5)])
def test_the_divergence_and_its_standard_error_are_right(width, shift):
    """300 estimates: their mean within four standard errors and 0.002 of PSIS's bias;
    their spread within five standard errors of what they say."""
    torch.manual_seed(0)
    report = make_posterior(width, shift).agreement(X[:300], num_samples=1000)
    error = report.kl_flow_energy - exact_kl(width, shift)
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(300) + 0.002
    assert 0.8 < float(error.std() / report.kl_flow_energy_se.mean()) < 1.25
    assert abs(report.log_z.mean()) < 0.01


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_standard_error_is_right_where_the_flow_leaks(share):
    """KL of N(0, 1.3²) to N(0, 1), of which a share is inside: 400 estimates."""
    torch.manual_seed(0)
    theta = 1.3 * torch.randn(2000, 400)
    log_weights = math.log(1.3) + 0.5 * theta**2 * (1 / 1.3**2 - 1)
    log_weights[torch.rand(2000, 400) > share] = -torch.inf
    report = report_agreement(log_weights, None)
    error = report.kl_flow_energy - exact_kl(1.3, 0.0, dim=1)
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(400) + 0.002
    assert 0.8 < float(error.std() / report.kl_flow_energy_se.mean()) < 1.25


def test_draws_outside_of_the_prior_do_not_count():
    """KL of the flow inside: of 1,000 draws with equal weights, half rejected, none."""
    log_weights = torch.zeros(1000, 1)
    log_weights[500:] = -torch.inf
    report = report_agreement(log_weights, None)
    assert float(report.kl_flow_energy) == pytest.approx(0.0, abs=1e-5)
    assert float(report.kl_flow_energy_se) == pytest.approx(0.0, abs=1e-5)
    assert float(report.log_z) == pytest.approx(-math.log(2), abs=1e-5)


def test_a_good_flow_is_trusted_at_all_observations_but_unusual_ones():
    """At most 1 % of observations like the simulations are called unusual: of 500, more
    than 14 in one run of 1,000, and nothing else is said of a flow that is exact or 1.1
    times too wide."""
    torch.manual_seed(0)
    _, x = TASK.simulate(500, seed=2)
    for width in (1.0, 1.1):
        report = make_posterior(width).agreement(x, num_samples=500)
        agreeing = ["agree" in verdict for verdict in report.verdicts]
        unusual = ["unlike" in verdict for verdict in report.verdicts]
        assert sum(unusual) <= 14
        assert [not u for u in unusual] == agreeing == report.flow_is_trustworthy.tolist()


def test_a_bad_flow_is_not_trusted_anywhere():
    """A tenth of the variance, or 2.5 standard deviations aside: it is said of 2 in 100
    at most that both agree, and of most that the flow can't be trusted. The corrected
    posterior can, for its draws go to the energy in steps."""
    torch.manual_seed(0)
    _, x = TASK.simulate(100, seed=2)
    for width, shift in ((0.3, 0.0), (1.0, 2.5)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report = make_posterior(width, shift).agreement(x)
        good = [v.startswith("flow and energy agree") for v in report.verdicts]
        assert sum(good) <= 2
        assert int(report.flow_is_trustworthy.sum()) < 50
        assert int(report.corrected_is_reliable.sum()) >= 95


def test_an_observation_far_outside_is_called_so():
    report = make_posterior().agreement(torch.tensor([[9.0, 9.0], [0.0, 0.5]]))
    assert report.verdicts[0].startswith("x is unlike the simulations (p = 0.004)")
    assert report.verdicts[1].startswith("flow and energy agree")
    assert report.flow_is_trustworthy.tolist() == [False, True]


def test_it_is_printed_a_line_for_each_observation():
    torch.manual_seed(0)
    report = make_posterior(1.6, 0.8).agreement(X[:2])
    head, first, second = str(report).splitlines()
    assert "Pareto k" in head
    assert "prefer the corrected posterior" in first
    kl = f"{float(report.kl_flow_energy[1]):.3f} ±"
    assert kl in second
    html = report._repr_html_()
    assert f"<td>{kl}" in html
    assert [f"<td>{verdict}</td>" in html for verdict in report.verdicts] == [True] * 2
    no_simulations = report_agreement(torch.zeros(200, 1), None)
    assert " -  flow and energy agree" in str(no_simulations)


def test_the_warning_is_given_once():
    """Of the flow's posterior by k̂, of the corrected one by its steps."""
    pair = TASK.pair(0.2)
    posterior = FlowPosterior(pair.flow, TASK.prior, energy=pair.energy)
    with pytest.warns(UserWarning, match="Pareto k is above"):
        posterior.agreement(X[:5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior.agreement(X[:5])


def test_bad_arguments_are_refused():
    posterior = make_posterior()
    with pytest.raises(ValueError, match="`num_samples` to be at least 100, got 99"):
        posterior.agreement(X[:1], num_samples=99)
    with pytest.raises(ValueError, match="default has not been set"):
        posterior.agreement()
    assert len(posterior.set_default_x(X[:1]).agreement().ess) == 1
