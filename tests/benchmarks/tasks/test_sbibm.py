"""Simulators and reference posteriors, against closed forms and sbibm's own files."""

import math
from importlib.util import find_spec

import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import chi2, kstest, truncnorm

from benchmarks.tasks.populations import (
    PREDATION_NOISE,
    PREDATION_TIMES,
    SIR_POPULATION,
    SIR_TESTS,
    SIR_TIMES,
    infected,
    prey_and_predators,
)
from benchmarks.tasks.references import NUM_OBSERVATIONS, NUM_SAMPLES, reference
from benchmarks.tasks.sbibm import (
    FOLDED_SCALE,
    TASKS,
    gaussian_linear_uniform,
    glm_design,
)
from benchmarks.tasks.sbibm_files import sbibm_file

has_sbibm = find_spec("sbibm") is not None
needs_sbibm = pytest.mark.skipif(not has_sbibm, reason="sbibm is not installed")
without_files = [name for name in TASKS if has_sbibm or name != "slcp_distractors"]


@pytest.mark.parametrize("name", without_files)
def test_simulations_are_finite_reproducible_and_inside_of_the_prior(name):
    task = TASKS[name]
    theta, x = task.simulate(50, seed=3)
    again = task.simulate(50, seed=3)
    assert torch.equal(theta, again[0])
    assert torch.equal(x, again[1])
    assert not torch.equal(x, task.simulate(50, seed=4)[1])
    assert x.isfinite().all()
    assert theta.dtype == x.dtype == torch.float32
    assert task.prior.log_prob(theta).isfinite().all()


def moments_agree(values, mean, variance, fourth_moment):
    """Within 5 standard errors, which fails by chance less than once in 10^5 entries."""
    num = len(values)
    error = math.sqrt(variance / num)
    error_of_variance = math.sqrt((fourth_moment - variance**2) / num)
    return bool(
        ((values.mean(0) - mean).abs() < 5 * error).all()
        and ((values.var(0) - variance).abs() < 5 * error_of_variance).all()
    )


def test_gaussian_linear_is_as_in_sbibm():
    theta, x = TASKS["gaussian_linear"].simulate(20_000, seed=0)
    assert theta.shape == x.shape == (20_000, 10)
    assert moments_agree(theta, 0.0, 0.1, 3 * 0.1**2)
    assert moments_agree(x - theta, 0.0, 0.1, 3 * 0.1**2)
    assert moments_agree(x, 0.0, 0.2, 3 * 0.2**2)


def test_gaussian_mixture_is_as_in_sbibm():
    theta, x = TASKS["gaussian_mixture"].simulate(20_000, seed=0)
    assert theta.shape == x.shape == (20_000, 2)
    assert moments_agree(theta, 0.0, 100 / 3, 10**4 / 5)
    variance = (1 + 0.01) / 2
    assert moments_agree(x - theta, 0.0, variance, 3 * (1 + 0.01**2) / 2)
    # Both entries are drawn with the same scale, and one is enough to tell which: with
    # the narrow one, |x − θ| > 0.5 has a probability of 6 · 10^-7.
    broad = (x - theta).abs() > 0.5
    share = broad.double().mean(0)
    expected = 0.5 * math.erfc(0.5 / math.sqrt(2))
    error = math.sqrt(expected * (1 - expected) / len(x))
    assert ((share - expected).abs() < 5 * error).all()
    both = float(broad.all(-1).double().mean())
    expected = 0.5 * math.erfc(0.5 / math.sqrt(2)) ** 2
    assert abs(both - expected) < 5 * math.sqrt(expected * (1 - expected) / len(x))


@pytest.mark.parametrize("dim", [2, 10])
def test_gaussian_linear_uniform_has_any_number_of_parameters(dim):
    theta, x = gaussian_linear_uniform(dim).simulate(20_000, seed=0)
    assert theta.shape == x.shape == (20_000, dim)
    assert moments_agree(theta, 0.0, 1 / 3, 1 / 5)
    assert moments_agree(x - theta, 0.0, 0.1, 3 * 0.1**2)


def test_epidemic_agrees_with_scipy():
    theta = torch.tensor([[0.4, 0.125], [1.2, 0.1], [0.1, 0.2]])
    for (contact, recovery), ours in zip(theta.tolist(), infected(theta), strict=True):
        start = [1 - 1 / SIR_POPULATION, 1 / SIR_POPULATION]
        solution = solve_ivp(
            lambda _, y, b=contact, g=recovery: [
                -b * y[0] * y[1],
                b * y[0] * y[1] - g * y[1],
            ],
            (0, 160),
            start,
            t_eval=SIR_TIMES.numpy(),
            rtol=1e-10,
            atol=1e-14,
        )
        theirs = torch.from_numpy(solution.y[1])
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-9)


def test_prey_and_predators_agree_with_scipy():
    theta = torch.tensor([[0.88, 0.05, 0.88, 0.05], [2.5, 0.02, 0.4, 0.1]])
    for rates, ours in zip(theta.tolist(), prey_and_predators(theta), strict=True):
        solution = solve_ivp(
            lambda _, y, r=rates: [
                r[0] * y[0] - r[1] * y[0] * y[1],
                r[3] * y[0] * y[1] - r[2] * y[1],
            ],
            (0, 20),
            [30.0, 1.0],
            t_eval=PREDATION_TIMES.numpy(),
            method="DOP853",
            rtol=1e-12,
            atol=1e-25,
        )
        theirs = torch.from_numpy(solution.y).flatten()
        assert torch.allclose(ours.log(), theirs.log(), atol=1e-4)


def test_a_solution_does_not_depend_on_the_batch_it_is_in():
    theta, _ = TASKS["lotka_volterra"].simulate(20, seed=0)
    alone = torch.cat([prey_and_predators(row[None]) for row in theta])
    assert torch.allclose(prey_and_predators(theta).log(), alone.log(), atol=1e-4)


def test_folded_posterior_is_exact():
    """KS tests at 1e-5 of 4 parameters, and of the signs: fails by chance in 5e-5."""
    task = TASKS["folded_gaussian"]
    theta, x_o, samples = reference(task, 1)
    assert theta.shape == x_o.shape == (1, 4)
    assert samples.shape == (NUM_SAMPLES, 4)
    precision = 1 + FOLDED_SCALE**-2
    sd = precision**-0.5
    for x, values in zip(x_o[0].tolist(), samples.double().T, strict=True):
        mean = x / FOLDED_SCALE**2 / precision
        exact = truncnorm(-mean / sd, math.inf, mean, sd)
        assert kstest(values.abs().numpy(), exact.cdf).pvalue > 1e-5
        positive = float((values > 0).double().mean())
        assert abs(positive - 0.5) < 4.5 * 0.5 / math.sqrt(NUM_SAMPLES)


def test_folded_posterior_agrees_with_simulations():
    """SBC without a sampler to train: ranks of θ among exact samples, KS at 1e-5."""
    task = TASKS["folded_gaussian"]
    theta, x = task.simulate(300, seed=1)
    torch.manual_seed(0)
    ranks = [
        (task.exact_posterior(row[None], 200) < true).double().mean(0)
        for row, true in zip(x, theta, strict=True)
    ]
    for values in torch.stack(ranks).T:
        jittered = (values * 200 + torch.rand(len(values))) / 201
        assert kstest(jittered.numpy(), "uniform").pvalue > 1e-5


@pytest.mark.parametrize("number", [0, NUM_OBSERVATIONS + 1])
def test_observations_are_numbered_from_1_to_10(number):
    with pytest.raises(ValueError, match=f"from 1 to 10, got {number}"):
        reference(TASKS["folded_gaussian"], number)


@pytest.mark.skipif(has_sbibm, reason="sbibm is installed")
def test_without_sbibm_it_says_how_to_install_it():
    with pytest.raises(ModuleNotFoundError, match="--no-deps sbibm"):
        reference(TASKS["two_moons"], 1)


@needs_sbibm
@pytest.mark.parametrize("name", list(TASKS))
def test_references_have_the_shapes_of_simulations(name):
    task = TASKS[name]
    theta, x = task.simulate(2, seed=0)
    for number in (1, NUM_OBSERVATIONS):
        true, x_o, samples = reference(task, number)
        assert true.shape == theta[:1].shape
        assert x_o.shape == x[:1].shape
        assert samples.shape == (NUM_SAMPLES, theta.shape[1])
        assert task.prior.log_prob(samples).isfinite().all()


@needs_sbibm
def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"no_such\.csv"):
        sbibm_file("slcp", "no_such.csv")


@needs_sbibm
def test_glm_design_is_sbibms_and_statistics_are_those_of_the_spikes():
    path = sbibm_file("bernoulli_glm", "design_matrix.pt")
    assert torch.equal(glm_design(), torch.load(path, weights_only=True))
    for number in range(1, NUM_OBSERVATIONS + 1):
        spikes = reference(TASKS["bernoulli_glm_raw"], number).x_o
        statistics = reference(TASKS["bernoulli_glm"], number).x_o
        assert torch.allclose(spikes @ glm_design(), statistics, atol=1e-4)


def test_glm_prior_is_smooth_as_in_sbibm():
    """The precision of the filter is FᵀF, with F = DD + diag(√(i/9))."""
    size = 9
    factor = torch.zeros(size, size)
    for i in range(size):  # DD is the second difference, shortened at the start
        for j, value in ((i, 1.0), (i - 1, -2.0), (i - 2, 1.0)):
            if j >= 0:
                factor[i, j] = value
        factor[i, i] += math.sqrt(i / size)
    expected = torch.zeros(size + 1, size + 1)
    expected[0, 0] = 0.5
    expected[1:, 1:] = factor.T @ factor
    got = TASKS["bernoulli_glm"].prior.precision_matrix
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@needs_sbibm
@pytest.mark.parametrize("name", ["two_moons", "slcp", "gaussian_linear"])
def test_stored_observations_are_likely_at_their_parameters(name):
    """Among 200 fresh simulations at the same parameters, no entry of x_o lies further
    than 8 of their standard deviations from their mean."""
    task = TASKS[name]
    for number in range(1, NUM_OBSERVATIONS + 1):
        theta, x_o, _ = reference(task, number)
        x = task.simulator(theta.expand(200, -1))
        z = (x_o[0] - x.mean(0)) / x.std(0)
        assert (z.abs() < 8).all()


@needs_sbibm
def test_stored_observations_of_epidemics_are_likely():
    """χ² of all, normal approximations where at least 5 are positive; at 1e-5 a side."""
    total, degrees = 0.0, 0
    for number in range(1, NUM_OBSERVATIONS + 1):
        theta, x_o, _ = reference(TASKS["sir"], number)
        share = infected(theta)
        enough = (SIR_TESTS * share > 5) & (SIR_TESTS * (1 - share) > 5)
        variance = SIR_TESTS * share * (1 - share)
        total += float(((x_o - SIR_TESTS * share).square() / variance)[enough].sum())
        degrees += int(enough.sum())
    assert degrees > 30
    assert chi2.ppf(1e-5, degrees) < total < chi2.isf(1e-5, degrees)


@needs_sbibm
def test_stored_observations_of_populations_are_likely():
    """χ² of all 200 values, exact but for rounding; at 1e-5 a side."""
    total = 0.0
    for number in range(1, NUM_OBSERVATIONS + 1):
        theta, x_o, _ = reference(TASKS["lotka_volterra"], number)
        errors = (x_o.log() - prey_and_predators(theta).log()) / PREDATION_NOISE
        total += float(errors.square().sum())
    assert chi2.ppf(1e-5, 200) < total < chi2.isf(1e-5, 200)


@needs_sbibm
def test_distractors_hide_slcp():
    """As sbibm's observations do; scales of 0.01² leave the mean of all four points."""
    order = torch.load(sbibm_file("slcp", "permutation_idx.torch"), weights_only=True)
    task = TASKS["slcp_distractors"]
    theta = task.simulate(20, seed=0)[0]
    theta[:, 2:4] = 0.01
    points = task.simulator(theta)[:, order.argsort()[:8]].reshape(20, 4, 2)
    torch.testing.assert_close(
        points, theta[:, None, :2].expand(-1, 4, -1), atol=1e-3, rtol=0
    )
    for number in range(1, NUM_OBSERVATIONS + 1):
        hidden = reference(TASKS["slcp_distractors"], number).x_o[0]
        plain = reference(TASKS["slcp"], number).x_o[0]
        assert torch.allclose(hidden[order.argsort()[:8]], plain, atol=1e-4)


def test_spikes_have_their_probabilities():
    """Mean number of spikes at θ = (b, 0, ..., 0), within 5 standard errors."""
    theta = torch.zeros(4000, 10)
    theta[:, 0] = 0.7
    spikes = TASKS["bernoulli_glm_raw"].simulator(theta)
    share = 1 / (1 + math.exp(-0.7))
    error = math.sqrt(share * (1 - share) / spikes.numel())
    assert abs(float(spikes.mean()) - share) < 5 * error
