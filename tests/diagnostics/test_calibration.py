"""Calibration: an exact posterior passes, and wrong ones fail in the right direction."""

import pickle

import numpy as np
import pytest
import torch
from numpy.random import SeedSequence
from sbi.diagnostics import check_tarp, run_sbc, run_tarp
from sbi.diagnostics.sbc import check_uniformity_frequentist
from sbi.diagnostics.tarp import get_tarp_references
from sbi.utils import BoxUniform

from sbi_jeffreys.diagnostics.calibration import Calibration, calibrate
from sbi_jeffreys.diagnostics.ranks import BIASED, CONSISTENT, JOINT, TOO_NARROW, TOO_WIDE
from sbi_jeffreys.posteriors.flow_posterior import FlowPosterior
from tests.posteriors.test_flow_posterior import make_flow

NUM, DIM = 300, 3


class GaussianPosterior:
    """Of x = θ + noise, both standard normal: N(x / 2, 1 / 2); or a wrong one.

    Args:
        scale: Factor on the standard deviation, one for each parameter.
        shift: Of the mean, in standard deviations.
    """

    def __init__(self, scale=(1.0,) * DIM, shift=(0.0,) * DIM):
        self.scale, self.shift = torch.tensor(scale), torch.tensor(shift)
        self.num_calls = 0

    def sample_batched(self, sample_shape, x, show_progress_bars=True):
        self.num_calls += 1
        noise = torch.randn(*sample_shape, *x.shape)
        return x / 2 + 0.5**0.5 * (self.shift + self.scale * noise)


class OneByOne(GaussianPosterior):
    def sample_batched(self, sample_shape, x, show_progress_bars=True):
        raise NotImplementedError

    def sample(self, sample_shape, x, show_progress_bars=True):
        return super().sample_batched((*sample_shape, 1), x)[:, 0]


def simulate(num=NUM, seed=0):
    torch.manual_seed(seed)
    theta = torch.randn(num, DIM)
    return theta, theta + torch.randn(num, DIM)


def calibrated(posterior, num=NUM, seed=0, **options):
    options = {"num_posterior_samples": 320, "show_progress_bars": False, **options}
    return calibrate(posterior, *simulate(num), seed=seed, **options)


def of_ranks(ranks, num_posterior_samples=1000):
    """A calibration of random ranks, of which the last column are TARP's."""
    p_values = check_uniformity_frequentist(ranks[:, :-1], num_posterior_samples)
    names = tuple(f"theta_{i}" for i in range(ranks.shape[1] - 1))
    curve = torch.linspace(0, 1, 11)
    return Calibration(
        names,
        num_posterior_samples,
        ranks[:, :-1],
        ranks[:, -1],
        p_values,
        curve,
        curve,
        0.0,
        1.0,
    )


def test_numbers_are_those_of_sbis_functions_on_the_same_samples():
    posterior = GaussianPosterior()
    theta, x = simulate()
    result = calibrated(posterior)

    torch.manual_seed(int(SeedSequence(0).generate_state(1)[0]))
    references = get_tarp_references(theta)
    samples = posterior.sample_batched((320,), x)
    drawn = GaussianPosterior()
    drawn.sample_batched = lambda *args, **kwargs: samples
    quiet = {"show_progress_bar": False}
    ranks, _ = run_sbc(theta, x, drawn, 320, **quiet)
    ecp, alpha = run_tarp(theta, x, drawn, references, 320, **quiet)
    atc, p_value = check_tarp(ecp, alpha)
    assert torch.equal(result.ranks, ranks)
    assert torch.equal(result.ks_p_values, check_uniformity_frequentist(ranks, 320))
    assert torch.equal(result.ecp, ecp)
    assert torch.equal(result.alpha, alpha)
    assert (result.tarp_atc, result.tarp_p_value) == (atc, p_value)
    fractions = result.tarp_ranks / 320
    counts, _ = torch.histogram(fractions, bins=NUM // 10)
    assert torch.allclose(ecp[1:], counts.cumsum(0) / NUM)
    assert result.parameter_names == ("theta_0", "theta_1", "theta_2")


def test_one_call_samples_each_posterior_once():
    posteriors = {"exact": GaussianPosterior(), "other": GaussianPosterior((0.5,) * DIM)}
    results = calibrated(posteriors)
    assert list(results) == ["exact", "other"]
    assert [posterior.num_calls for posterior in posteriors.values()] == [1, 1]
    assert torch.equal(results["exact"].ranks, calibrated(posteriors["exact"]).ranks)


def test_an_exact_posterior_is_consistent():
    """One seed in 100 fails by chance; not this one, which theta was drawn from, too."""
    result = calibrated(GaussianPosterior())
    assert set(result.verdicts.values()) == {CONSISTENT}
    assert result.verdict.startswith("consistent: 300 simulations")
    assert "\n" not in result.verdict


@pytest.mark.parametrize(
    ("posterior", "expected"),
    [
        (GaussianPosterior(scale=(0.6,) * DIM), TOO_NARROW),
        (GaussianPosterior(scale=(1.6,) * DIM), TOO_WIDE),
        (GaussianPosterior(shift=(0.7,) * DIM), BIASED),
        (GaussianPosterior(shift=(-3.0,) * DIM), BIASED),
        (GaussianPosterior(scale=(0.01,) * DIM), TOO_NARROW),
        (GaussianPosterior(scale=(100.0,) * DIM), TOO_WIDE),
    ],
)
def test_a_wrong_posterior_is_called_what_it_is(posterior, expected):
    """TARP's z-scores are 7, where 3.4 are asked for; the parameters' are above 8."""
    result = calibrated(posterior)
    verdicts = result.verdicts
    joint = verdicts.pop(JOINT)
    assert set(verdicts.values()) == {expected}
    assert joint in ((TOO_NARROW, TOO_WIDE) if expected == BIASED else (expected,))
    assert (result.tarp_atc > 0) == (joint == TOO_WIDE)
    assert result.verdict.startswith(f"{expected}: 3 of 3 parameters")
    assert "\n" not in result.verdict


def test_each_parameter_has_its_own_direction():
    posterior = GaussianPosterior(scale=(0.5, 2.0, 1.0), shift=(0.0, 0.0, 1.0))
    result = calibrated(posterior, parameter_names=np.array(["a", "b", "c"]))
    assert result.verdicts["a"] == TOO_NARROW
    assert result.verdicts["b"] == TOO_WIDE
    assert result.verdicts["c"] == BIASED
    assert (np.sign(result.bias[2]), *np.sign(result.coverage_error[:2])) == (1, -1, 1)
    for part in ("too narrow: 1 of 3", "too wide: 1 of 3", "biased: 1 of 3", "too high"):
        assert part in result.verdict
    low = calibrated(GaussianPosterior(shift=(0.0, -1.0, 0.0)))
    assert [low.verdicts[f"theta_{i}"] for i in range(3)] == [
        CONSISTENT,
        BIASED,
        CONSISTENT,
    ]
    assert "most of all theta_1 (too low, " in low.verdict


@pytest.mark.parametrize(("power", "expected"), [(3.0, TOO_NARROW), (0.3, TOO_WIDE)])
def test_tarp_counts_where_no_single_parameter_fails(power, expected):
    """Its ranks are drawn to the ends of 0 to 1000, or to the middle."""
    torch.manual_seed(0)
    ranks = torch.randint(0, 1001, (500, 3)).float()
    centred = ranks[:, 2] / 500 - 1
    ranks[:, 2] = 500 * (1 + centred.sign() * centred.abs() ** (1 / power))
    result = of_ranks(ranks)
    assert list(result.verdicts.values()) == [CONSISTENT, CONSISTENT, expected]
    assert result.verdict.startswith(f"{expected}: all parameters (TARP)")


def test_false_alarms_are_as_rare_as_stated():
    """300 calibrations of exact ranks; at 1 %, more than 11 fail once in 20,000 runs."""
    torch.manual_seed(0)
    alarms = 0
    for _ in range(300):
        ranks = torch.randint(0, 1001, (100, 3)).float()
        alarms += not of_ranks(ranks).verdict.startswith(CONSISTENT)
    assert alarms <= 11


def test_coverage_and_errors_follow_from_the_ranks():
    """Of S = 9 samples, ranks 0 to 9 are u = 0.05, 0.15, ... 0.95."""
    ranks = torch.arange(10.0)[:, None].expand(-1, 3).clone()
    ranks[:, 1] = 0
    result = of_ranks(ranks, num_posterior_samples=9)
    assert result.pit["theta_0"] == pytest.approx(np.linspace(0.05, 0.95, 10))
    assert result.bias == pytest.approx([0.0, 0.45])
    assert result.coverage_error == pytest.approx([0.0, -0.4])
    coverage, error = result.coverage(0.6)
    assert coverage == pytest.approx([0.6, 0.0])
    assert error == pytest.approx((0.24 / 10) ** 0.5)
    coverage, error = result.coverage([0.6, 0.95])
    assert coverage == pytest.approx(np.array([[0.6, 0.0], [1.0, 1.0]]))
    assert error[:, 0] == pytest.approx([(0.24 / 10) ** 0.5, (0.0475 / 10) ** 0.5])
    for level in (0.0, 1.0, [0.5, np.nan]):
        with pytest.raises(ValueError, match=r"`level` between 0 and 1"):
            result.coverage(level)


def test_coverage_of_a_gaussian_that_is_too_narrow():
    """90 % intervals 0.6 times too narrow hold 67.6 %; within 4.5 errors of that."""
    coverage, error = calibrated(GaussianPosterior((0.6,) * DIM), num=1000).coverage(0.9)
    assert coverage == pytest.approx(0.676, abs=4.5 * (0.676 * 0.324 / 1000) ** 0.5)
    assert (0.9 - coverage > 4.5 * error).all()


def test_a_seed_makes_it_reproducible_and_leaves_the_state_alone():
    posterior = GaussianPosterior()
    theta, x = simulate()
    state = torch.get_rng_state()
    some, same, others = (
        calibrate(posterior, theta, x, seed=seed, show_progress_bars=False)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(some.ranks, same.ranks)
    assert torch.equal(some.ecp, same.ecp)
    assert not torch.equal(some.ranks, others.ranks)
    assert pickle.loads(pickle.dumps(some)).verdict == some.verdict


def test_a_seed_is_also_numpys():
    """From which sbi's slice sampler draws."""

    class OfNumpy(GaussianPosterior):
        def sample_batched(self, sample_shape, x, show_progress_bars=True):
            noise = np.random.standard_normal((*sample_shape, *x.shape))  # noqa: NPY002
            return x / 2 + 0.5**0.5 * torch.from_numpy(noise).float()

    some, same = (calibrated(OfNumpy(), num=20, seed=1) for _ in range(2))
    assert torch.equal(some.ranks, same.ranks)


def test_a_posterior_without_batched_sampling_is_sampled_in_a_loop():
    with pytest.warns(UserWarning, match="Batched sampling not implemented"):
        result = calibrated(OneByOne(scale=(0.3,) * DIM))
    assert result.ranks.shape == (NUM, DIM)
    assert result.verdict.startswith(TOO_NARROW)


def test_our_posterior_is_consistent_with_its_own_samples():
    """Parameters drawn from the posterior itself; a chance of 1 % for each seed."""
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    posterior = FlowPosterior(make_flow(prior), prior)
    torch.manual_seed(3)
    x = torch.randn(200, 2)
    theta = posterior.sample_batched((1,), x, show_progress_bars=False)[0]
    result = calibrate(posterior, theta, x, seed=0, show_progress_bars=False)
    assert result.verdict.startswith(CONSISTENT)
    wrong = calibrate(posterior, theta / 5, x, seed=0, show_progress_bars=False)
    assert wrong.verdict.startswith(TOO_WIDE)


def test_arrays_and_double_precision_are_taken():
    theta, x = simulate(100)
    results = [
        calibrate(GaussianPosterior(), *pair, seed=0, show_progress_bars=False)
        for pair in [(theta, x), (theta.numpy(), x.double().numpy())]
    ]
    assert torch.equal(results[0].ranks, results[1].ranks)


def test_invalid_simulations_are_left_out():
    theta, x = simulate()
    x[::3] = torch.nan
    with pytest.warns(UserWarning, match="100 NaNs"):
        result = calibrate(GaussianPosterior(), theta, x, show_progress_bars=False)
    assert result.ranks.shape == (200, DIM)


def test_few_simulations_or_samples_are_warned_of():
    with pytest.warns(UserWarning, match="20 simulations reveal only large") as warned:
        calibrated(GaussianPosterior(), num=20, num_posterior_samples=50)
    assert [w.filename for w in warned] == [__file__]
    with pytest.warns(UserWarning, match=r"samples=99`.* Use 100 or more") as warned:
        calibrated(GaussianPosterior(), num=100, num_posterior_samples=99)
    assert [w.filename for w in warned] == [__file__]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": torch.randn(20)}, r"`theta` of shape \(N, D\).* got \(20,\)"),
        ({"x": torch.randn(19, 3)}, r"got \(20, 3\) and \(19, 3\)"),
        ({"theta": torch.full((20, 3), torch.nan)}, "finite `theta`, but 20 of 20"),
        ({"parameter_names": ["a", "b"]}, "3 different `parameter_names`"),
        ({"parameter_names": ["a", "b", "b"]}, "3 different `parameter_names`"),
        ({"parameter_names": "abc"}, "3 different `parameter_names`, got 'abc'"),
        ({"parameter_names": ["a", "chain", "b"]}, r"names` than \['chain'\]"),
        ({"num_posterior_samples": 0}, "at least 1 .* got 0"),
        ({"num_bins": 1}, "`num_bins` of at least 2, got .* and 1"),
        (
            {"theta": torch.randn(9, 3), "x": torch.randn(9, 3)},
            "at least 10 simulations .* got 9",
        ),
        (
            {"x": torch.randn(20, 3).index_fill(0, torch.arange(11), torch.inf)},
            "at least 10 simulations with finite `x`, got 9",
        ),
    ],
)
def test_bad_arguments_are_refused_before_sampling(changes, message):
    posterior = GaussianPosterior()
    arguments = {"theta": torch.randn(20, 3), "x": torch.randn(20, 3), **changes}
    with pytest.raises(ValueError, match=message):
        calibrate(posterior, **arguments)
    assert posterior.num_calls == 0


def test_samples_that_are_nan_are_refused():
    class Failing(GaussianPosterior):
        def sample_batched(self, sample_shape, x, show_progress_bars=True):
            samples = super().sample_batched(sample_shape, x)
            samples[:3, 0] = torch.nan
            return samples

    posteriors = {"fine": GaussianPosterior(), "failing": Failing()}
    with pytest.raises(ValueError, match=r"'failing', but 3 of \d+ have NaN"):
        calibrated(posteriors)


def test_what_is_no_posterior_is_refused():
    with pytest.raises(TypeError, match="Tensor, which has no `sample_batched`"):
        calibrated({"fine": GaussianPosterior(), "not": torch.zeros(3)})
