"""Densities without conditions: shapes, exact cases, bounds, resuming, errors."""

import math

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sbi_jeffreys import JeffreysDensityEstimator

QUICK = {"max_num_epochs": 3, "training_batch_size": 20}


pytestmark = pytest.mark.filterwarnings("ignore:Training stopped at `max_num_epochs")


def make(**options):
    torch.manual_seed(0)
    return JeffreysDensityEstimator(show_progress_bars=False, **options)


@pytest.mark.parametrize(
    ("num_features", "flow"), [(1, "nsf"), (2, "nsf"), (5, "nsf"), (2, "maf")]
)
def test_shapes(num_features, flow):
    samples = torch.randn(60, num_features)
    estimator = make(density_estimator=flow).fit(samples, **QUICK)
    for fitted in (estimator, estimator.latest):
        assert fitted.sample((4, 3)).shape == (4, 3, num_features)
        assert fitted.sample().shape == (1, num_features)
        points = torch.randn(7, 2, num_features)
        assert fitted.log_prob(points).shape == (7, 2)
        assert fitted.proxy_log_prob(points).shape == (7, 2)
        assert all(value.shape == () for value in fitted.agreement(100))
    assert len(estimator.summary["multipliers"]) == 3


def test_it_is_the_pair_of_jnpe_without_a_condition():
    """On points, in blocks, both models give what the pair does."""
    estimator = make().fit(torch.randn(60, 2), **QUICK)
    points = torch.randn(10_001, 2)
    nothing = torch.zeros(1, 1)
    with torch.no_grad():
        log_p = estimator.pair.flow.log_prob(points[:, None], nothing)[:, 0]
        f = estimator.pair.energy(points[:, None], nothing)[:, 0]
    torch.testing.assert_close(estimator.log_prob(points), log_p)
    torch.testing.assert_close(estimator.proxy_log_prob(points), f)


def test_no_model_of_a_simulator_is_fitted(monkeypatch):
    monkeypatch.delattr("sbi_jeffreys.stages.PoolFit")
    estimator = make().fit(torch.randn(60, 2), **QUICK)
    for model in ("linear_model", "exponential_family", "synthetic_likelihood"):
        assert estimator.summary[f"{model}_weight"] == [0.0]


def test_fits_a_mixture_better_than_a_gaussian():
    """Two Gaussians five standard deviations apart; both models' test NLL, in nats.

    The exact one is 2.97 and the best Gaussian's 3.71; the standard error of their
    difference is 0.01 on 5,000 points. Half of it is far from either.
    """
    scales = Independent(Normal(torch.tensor([[-2.5, 0.0], [2.5, 0.0]]), 1.0), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(2)), scales)
    torch.manual_seed(1)
    estimator = make(num_energies=1, num_particles=1)
    estimator.fit(mixture.sample((1000,)), max_num_epochs=25)
    points = mixture.sample((5000,))
    exact = -mixture.log_prob(points).mean()
    gaussian = math.log(2 * math.pi * math.e) + 0.5 * math.log(1 + 2.5**2)
    halfway = (exact + gaussian) / 2
    assert exact < -estimator.log_prob(points).mean() < halfway
    log_z = estimator.agreement().log_z
    assert log_z - estimator.proxy_log_prob(points).mean() < halfway


def test_samples_stay_within_the_base():
    base = BoxUniform(torch.zeros(2), torch.ones(2))
    estimator = make(base=base).fit(base.sample((60,)), **QUICK)
    samples = estimator.sample((1000,))
    assert samples.min() >= 0
    assert samples.max() <= 1
    points = torch.tensor([[2.0, 0.5], [0.5, -1e-6], [0.5, 0.5]])
    for log_prob in (estimator.log_prob(points), estimator.proxy_log_prob(points)):
        assert log_prob.isneginf().tolist() == [True, True, False]


def test_resuming_continues_and_fitting_again_does_not():
    samples = torch.randn(60, 2)
    at_once = make().fit(samples, **QUICK | {"max_num_epochs": 4})
    in_parts = make().fit(samples, **QUICK | {"max_num_epochs": 2})
    halfway = in_parts.latest.log_prob(samples)
    in_parts.fit(samples, resume_training=True, **QUICK | {"max_num_epochs": 4})
    later = in_parts.latest.log_prob(samples)
    torch.testing.assert_close(at_once.latest.log_prob(samples), later)
    assert not torch.equal(halfway, later)
    again = in_parts.fit(samples + 10, **QUICK)
    assert len(again.summary["multipliers"]) == 3
    assert (again.sample((100,)).mean(0) > 5).all()


def test_what_was_fitted_outlives_a_fit_that_fails():
    estimator = make(base=BoxUniform(torch.zeros(2), torch.ones(2)))
    estimator.fit(torch.rand(60, 2), **QUICK)
    before = estimator.log_prob(torch.full((1, 2), 0.5))
    with pytest.raises(ValueError, match="outside"):
        estimator.fit(torch.rand(60, 2) + 5, **QUICK)
    assert torch.equal(estimator.log_prob(torch.full((1, 2), 0.5)), before)


def test_points_of_other_types():
    estimator = make().fit(torch.randn(60, 2), **QUICK)
    points = torch.randn(2, 3, 2)
    log_prob = estimator.log_prob(points)
    assert log_prob.shape == (2, 3)
    assert estimator.log_prob(points[:, :0]).shape == (2, 0)
    for other in (points.double(), points.numpy(), points.tolist()):
        torch.testing.assert_close(estimator.log_prob(other), log_prob)


class TestErrors:
    """They come before training."""

    def test_samples_without_features(self):
        with pytest.raises(ValueError, match=r"`samples` of shape \(N, D\), got \(9,\)"):
            make().fit(torch.randn(9))

    def test_samples_that_are_not_finite(self):
        samples = torch.randn(60, 2)
        samples[3, 1] = torch.nan
        samples[4] = torch.inf
        with pytest.raises(ValueError, match="finite `samples`, but 2 of 60 have"):
            make().fit(samples)

    def test_samples_outside_of_the_base(self):
        with pytest.raises(ValueError, match="prior"):
            make(base=BoxUniform(torch.zeros(2), torch.ones(2))).fit(
                torch.full((60, 2), 2)
            )

    @pytest.mark.filterwarnings("ignore:Only one data sample")
    def test_too_few_samples(self):
        with pytest.raises(ValueError, match="Expected enough simulations"):
            make().fit(torch.randn(1, 2))

    def test_options_are_checked_at_once(self):
        with pytest.raises(
            ValueError, match="`num_energies` to be a whole number, at least 1, got 0"
        ):
            make(num_energies=0)

    def test_points_of_another_dimension(self):
        estimator = make().fit(torch.randn(60, 2), **QUICK)
        for log_prob in (estimator.log_prob, estimator.proxy_log_prob):
            with pytest.raises(ValueError, match=r"shape \(..., 2\), got \(3, 1\)"):
                log_prob(torch.zeros(3, 1))

    def test_before_fitting(self):
        with pytest.raises(RuntimeError, match="train"):
            make().sample((3,))
