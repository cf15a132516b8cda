"""A diagnosis: numbers are those of closed forms, and verdicts name the error made."""

import numpy as np
import pytest
import torch
from sbi.inference import NPE
from scipy.stats import binom, norm

from sbi_jeffreys import calibrate, diagnose
from sbi_jeffreys.diagnostics.diagnose import LEVELS, Diagnosis
from sbi_jeffreys.diagnostics.ranks import BIASED, CONSISTENT, JOINT, TOO_NARROW
from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior
from tests.closed_forms import ConjugateGaussian
from tests.diagnostics.test_calibration import of_ranks
from tests.small_trainings import BOX, simulate

DIM, NUM = 3, 400
TASK = ConjugateGaussian(DIM)
THETA, X = TASK.simulate(NUM, seed=1)
SD = (0.5 / 1.5) ** 0.5
QUIET = {"show_progress_bars": False}


class OfFlow:
    """The exact posterior, or one that is wider or shifted, without any energy."""

    def __init__(self, width=1.0, shift=0.0):
        self.flow = TASK.flow(width, shift)
        self.num_calls = 0

    def sample_batched(self, sample_shape, x, show_progress_bars=True):
        self.num_calls += 1
        return self.flow.given(x).rsample_and_log_prob(*sample_shape)[0]

    def log_prob_batched(self, theta, x):
        return self.flow.given(x).log_prob(theta)


class TwoPoints:
    """Half of the samples at each of two points, with mean and deviation of the exact."""

    def sample_batched(self, sample_shape, x, show_progress_bars=True):
        (num,) = sample_shape
        signs = torch.tensor([-1.0, 1.0]).repeat(num // 2)[:, None, None]
        return x / 1.5 + SD * ((num - 1) / num) ** 0.5 * signs


def diagnosed(posterior, theta=THETA, x=X, num_posterior_samples=300, **options):
    options = {"seed": 0, **QUIET, **options}
    return diagnose(
        posterior, theta, x, num_posterior_samples=num_posterior_samples, **options
    )


def of(calibration, log_prob=None):
    """A diagnosis of ranks alone."""
    some = np.random.default_rng(0).normal(size=calibration.ranks.shape)
    return Diagnosis(some, some, abs(some) + 1, calibration, log_prob, None)


def test_recovery_contraction_and_z_scores_are_those_of_the_closed_form():
    result = diagnosed(TwoPoints())
    theta, x = THETA.double().numpy(), X.double().numpy()
    variance = theta.var(0, ddof=1)
    error = x / 1.5 - theta
    r_squared = 1 - (error**2).mean(0) / variance
    assert result.recovery == pytest.approx(r_squared, abs=1e-5)
    contraction = np.broadcast_to(1 - SD**2 / variance, (NUM, DIM))
    assert result.contraction == pytest.approx(contraction, abs=1e-5)
    assert result.z_scores == pytest.approx(error / SD, abs=1e-4)
    table = result.parameters
    assert table["r_squared"].to_numpy() == pytest.approx(r_squared, abs=1e-5)
    assert table["contraction"].to_numpy() == pytest.approx(contraction[0], abs=1e-5)
    assert table["z_mean"].to_numpy() == pytest.approx(error.mean(0) / SD, abs=1e-4)
    sd = error.std(0, ddof=1) / SD
    assert table["z_sd"].to_numpy() == pytest.approx(sd, abs=1e-4)


def test_the_nll_is_that_of_the_closed_form():
    """The exact posterior is N(x / 1.5, 1 / 3) for each parameter."""
    result = diagnosed(OfFlow())
    exact = -norm.logpdf(THETA.numpy(), X.numpy() / 1.5, SD).sum(1)
    assert result.nll[0] == pytest.approx(exact.mean(), rel=1e-5)
    assert result.nll[1] == pytest.approx(exact.std(ddof=1) / NUM**0.5, rel=1e-4)
    assert f"{exact.mean():.3f} ± " in str(result)
    assert diagnosed(TwoPoints()).nll is None


def test_an_exact_posterior_is_consistent():
    """1.35 % of seeds fail by chance; not these, and z-scores stay in 4.5 errors."""
    result = diagnosed(OfFlow())
    assert set(result.verdicts.values()) == {CONSISTENT}
    assert set(result.parameters["verdict"]) == {CONSISTENT}
    assert abs(result.z_scores.mean(0)).max() < 4.5 / NUM**0.5
    assert abs(result.z_scores.std(0) - 1).max() < 4.5 / (2 * NUM) ** 0.5
    signed, error = result.signed_coverage
    assert (abs(signed) < 4.5 * error).all()


def test_a_posterior_half_as_wide_is_called_too_narrow():
    """Central intervals hold what the normal distribution says, in 4.5 errors."""
    result = diagnosed(OfFlow(width=0.5))
    assert set(result.verdicts.values()) == {TOO_NARROW}
    levels = np.array(LEVELS)[:, None]
    held = 2 * norm.cdf(0.5 * norm.ppf((1 + levels) / 2)) - 1
    signed, error = result.signed_coverage
    assert error == pytest.approx(np.sqrt(levels * (1 - levels) / NUM))
    assert (abs(signed - (held - levels)) < 4.5 * np.sqrt(held * (1 - held) / NUM)).all()
    assert result.z_scores.std(0) == pytest.approx(np.full(DIM, 2.0), rel=0.2)
    row = str(result).splitlines()[3]
    assert row.split()[0] == "theta_0"
    assert row.endswith(TOO_NARROW)


def test_a_shifted_posterior_is_called_biased():
    result = diagnosed(OfFlow(shift=0.7), parameter_names=["a", "b", "c"])
    verdicts = result.verdicts
    assert JOINT in verdicts
    assert [verdicts[name] for name in "abc"] == [BIASED] * 3
    assert result.z_scores.mean(0) == pytest.approx(np.full(3, 0.7), abs=4.5 / NUM**0.5)
    assert result.recovery.max() < result.contraction.mean(0).min()


def test_coverage_counts_where_ranks_alone_say_nothing():
    """Of 1,000 ranks, 9 % instead of 5 % are beyond the 95 % interval."""
    inside = 25 + np.linspace(0, 951, 910)
    ranks = np.concatenate([np.arange(45) / 2, inside, 1000 - np.arange(45) / 2]).round()
    generator = np.random.default_rng(0)
    tarp = generator.permutation(np.linspace(0, 1000, 1000).round())
    calibration = of_ranks(torch.tensor(np.stack([ranks, tarp], 1)).float())
    assert set(calibration.verdicts.values()) == {CONSISTENT}
    result = of(calibration)
    assert result.verdicts == {"theta_0": TOO_NARROW, JOINT: CONSISTENT}
    assert result.signed_coverage.coverage[-1] == pytest.approx([-0.04], abs=2e-3)


def test_p_values_of_coverage_are_binomial_with_the_ranks_own_probability():
    """Both ranks of a single sample are inside of a 50 % interval."""
    single = of_ranks(torch.tensor([[0.0, 0.0], [1.0, 1.0]] * 50), 1)
    assert single.coverage_p_values(0.5) == pytest.approx([1.0])
    ranks = torch.arange(10.0).repeat(10)[:, None].expand(-1, 3).clone()
    ranks[:, 1] = 0
    p_values = of_ranks(ranks, 9).coverage_p_values([0.6, 0.8])
    never = [2 * binom.cdf(0, 100, level) for level in (0.6, 0.8)]
    assert p_values == pytest.approx(np.array([[1.0, never[0]], [1.0, never[1]]]))


def test_false_alarms_are_as_rare_as_stated():
    """300 diagnoses of exact ranks; at 1.5 %, more than 14 fail once in 16,000 runs."""
    torch.manual_seed(0)
    alarms = 0
    for _ in range(300):
        verdicts = of(of_ranks(torch.randint(0, 1001, (100, 3)).float())).verdicts
        alarms += set(verdicts.values()) != {CONSISTENT}
    assert alarms <= 14


def test_one_set_of_samples_serves_all_and_is_that_of_calibrate():
    posterior = OfFlow()
    result = diagnosed(posterior)
    assert posterior.num_calls == 1
    same = calibrate(posterior, THETA, X, num_posterior_samples=300, seed=0, **QUIET)
    assert torch.equal(result.calibration.ranks, same.ranks)
    assert torch.equal(result.calibration.tarp_ranks, same.tarp_ranks)


def test_agreement_is_counted_where_there_are_flow_and_energy():
    posterior = EnergyPosterior(TASK.pair(1.0, 0.7), TASK.prior)
    with pytest.warns(UserWarning, match="reveal only large errors"):
        result = diagnosed(posterior, THETA[:30], X[:30], 60)
    counts = result.checks[result.checks["check"] == "agreement"]
    assert counts.values.tolist() == [
        ["agreement", "at 30 of 30 x", "flow and energy differ"]
    ]
    assert result.agreement.kl_flow_energy.mean() == pytest.approx(1.5 * 0.7**2, abs=0.05)
    assert diagnosed(OfFlow()).agreement is None


def test_a_truth_without_density_is_told():
    log_prob = torch.zeros(50)
    log_prob[:3] = -torch.inf
    ranks = torch.randint(0, 101, (50, 2), generator=torch.manual_seed(0)).float()
    result = of(of_ranks(ranks, 100), log_prob)
    row = result.checks.set_index("check").loc["NLL"]
    assert row.tolist() == ["infinite", "no density at 3 of 50 truths"]


def test_a_posterior_that_is_a_point_gets_finite_z_scores():
    result = diagnosed(OfFlow(width=0.0), num_posterior_samples=200)
    assert np.isfinite(result.z_scores).all()
    assert abs(result.z_scores).max() > 1e5
    assert result.contraction == pytest.approx(np.ones((NUM, DIM)))


def test_sbis_posterior_is_diagnosed():
    torch.manual_seed(0)
    npe = NPE(TASK.prior, density_estimator="maf", show_progress_bars=False)
    npe.append_simulations(*TASK.simulate(100, seed=2)).train(max_num_epochs=2)
    result = diagnosed(npe.build_posterior(), THETA[:100], X[:100], 100)
    assert np.isfinite(result.nll).all()
    assert result.agreement is None
    assert len(result.parameters) == DIM


def test_our_posterior_is_diagnosed(trained):
    theta = BOX.sample((100,))
    result = diagnosed(trained.build_posterior(), theta, simulate(theta), 100)
    assert np.isfinite(result.nll).all()
    assert len(result.agreement.verdicts) == 100
    assert len(result.parameters) == 2


@pytest.mark.filterwarnings("ignore:95 simulations reveal only large errors")
def test_invalid_simulations_are_left_out():
    x = X[:100].index_fill(0, torch.arange(5), torch.nan)
    with pytest.warns(UserWarning, match="5 NaNs"):
        result = diagnosed(OfFlow(), THETA[:100], x)
    assert np.array_equal(result.theta, THETA[5:100].double().numpy())


def test_a_seed_makes_all_of_it_reproducible(trained):
    posterior = trained.build_posterior()
    theta = BOX.sample((100,))
    x = simulate(theta)
    state = torch.get_rng_state()
    some, same = (diagnosed(posterior, theta, x, 100, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert str(some) == str(same)
    assert torch.equal(some.agreement.log_weights, same.agreement.log_weights)


def test_print_and_notebook_show_the_same_cells():
    result = diagnosed(OfFlow(), parameter_names=["a<b", "b", "c"])
    head, *_ = text = str(result).splitlines()
    assert head == f"{NUM} simulations, 300 samples of the posterior for each"
    html = result._repr_html_()
    assert "a&lt;b" in html
    rows = [line.split() for line in text[3:6]]
    assert [row[0] for row in rows] == ["a<b", "b", "c"]
    for cell in (cell for row in rows[1:] for cell in row):
        assert f"<td>{cell}</td>" in html
    assert html.count("<table") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_posterior_samples": 1}, "`num_posterior_samples` to be at least 2, got 1"),
        ({"theta": THETA * torch.tensor([1.0, 0.0, 1.0])}, r"constant columns \[1\]"),
        ({"theta": THETA[:5]}, r"`theta` of shape \(N, D\) and `x`"),
        ({"theta": THETA[:, 0]}, r"`theta` of shape \(N, D\) and `x`"),
        ({"theta": THETA / 0}, "finite `theta`, but 400 of 400"),
        (
            {"x": X.index_fill(0, torch.arange(391), torch.nan)},
            "at least 10 simulations with finite `x`, got 9",
        ),
        ({"parameter_names": ["a"]}, "3 different `parameter_names`"),
        ({"parameter_names": ["a", "a", "b"]}, "3 different `parameter_names`"),
        ({"parameter_names": ["a", "b", "draw"]}, r"names` than \['draw'\]"),
    ],
)
def test_bad_arguments_are_refused_before_sampling(changes, message):
    posterior = OfFlow()
    with pytest.raises(ValueError, match=message):
        diagnosed(posterior, **changes)
    assert posterior.num_calls == 0


def test_what_is_no_posterior_is_refused():
    with pytest.raises(TypeError, match="Tensor, which has no `sample_batched`"):
        diagnosed(torch.zeros(3))
