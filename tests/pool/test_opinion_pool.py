"""The pool: by hand, which models get weight, and what is fitted to what."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.models.prior_base import base_density
from sbi_jeffreys.pool import candidates, opinion_pool
from sbi_jeffreys.pool.candidates import Candidates
from sbi_jeffreys.pool.exponential_family import ExponentialFamily
from sbi_jeffreys.pool.linear_model import LinearModel
from sbi_jeffreys.pool.opinion_pool import Pool, PoolFit
from sbi_jeffreys.pool.registry import POOL_MODELS
from sbi_jeffreys.pool.synthetic_likelihood import errors, folds, model
from sbi_jeffreys.preprocessing.support import support_of
from tests.closed_forms import GaussianFlow

NOISE = 0.5
PRIOR = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
NONE = dict.fromkeys(POOL_MODELS, 0.0)


class Ratio(nn.Module):
    """A network that has learnt `factor` times the log-ratio."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, input, condition):
        theta = input * SCALE + LOC
        r = (theta * condition - theta.square() / 2).sum(-1) / NOISE**2
        return self.factor * r


def simulations(num):
    theta = PRIOR.sample((num,))
    return theta, theta + NOISE * torch.randn(num, 2).double()


@pytest.fixture(autouse=True)
def one_error_model(monkeypatch):
    """How the synthetic likelihood chooses its errors has tests of its own."""
    monkeypatch.setattr(model, "error_models_for", lambda num: [errors.CORRELATED])


torch.manual_seed(0)
TRAINING, VALIDATION = simulations(1000), simulations(400)
LOC, SCALE = TRAINING[0].mean(0), TRAINING[0].std(0)


def pool_of(models, training, validation):
    theta, x = (torch.cat(both) for both in zip(training, validation, strict=True))
    rows = torch.arange(len(theta)).split([len(training[0]), len(validation[0])])
    return fit_pool(models, theta, x, *rows)


def fit_pool(models, theta, x, *rows):
    pool = PoolFit(models, theta, x, *rows, tuple(POOL_MODELS), effort=1.0)
    pool.fit(models)
    return pool.pooled(models), pool.weights


def pair(factor):
    support = support_of(PRIOR, TRAINING[0])
    energy = ConditionalEnergy(
        Ratio(factor),
        base_density(PRIOR, TRAINING[0], support),
        support,
        TRAINING[0],
        nn.Identity(),
        TRAINING[1][0].shape,
    )
    return ModelPair(GaussianFlow(log_scale=-0.5), energy)


def test_weighted_average_by_hand():
    theta, x = torch.randn(5, 7, 2).double(), torch.randn(7, 2).double()
    linear = LinearModel.fit(Candidates.without_draws(*TRAINING))
    members = nn.Module()
    members.forward = lambda input, condition: torch.stack(
        [Ratio(1.0)(input, condition), Ratio(2.0)(input, condition)]
    )
    family = ExponentialFamily(2, 2).double()
    pool = Pool(members, [linear, family], (0.25, 0.5))
    want = 0.25 * Ratio(1.5)(theta, x) + 0.25 * linear(theta, x) + 0.5 * family(theta, x)
    torch.testing.assert_close(pool(theta, x), want)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_gain_over_the_flow_is_that_of_the_log_likelihoods(factor, monkeypatch):
    """Against a Gaussian flow of scale e^-1/2 about x, without models: within 0.1 nats,
    for 256 draws. The networks have learnt the log-ratio, or twice that."""
    monkeypatch.setattr(opinion_pool, "POOL_MODELS", {})
    models = pair(factor)
    (theta, x), rows = VALIDATION, torch.arange(400)
    pool = PoolFit(models, theta, x, rows, rows, (), effort=1.0)
    pool.fit(models)
    precision = 1 + factor / NOISE**2
    posterior = Normal(factor * x / NOISE**2 / precision, precision**-0.5)
    gains = posterior.log_prob(theta).sum(-1) - models.flow.log_prob(theta, x)
    assert pool.gain == pytest.approx(gains.mean().item(), abs=0.1)


@pytest.mark.full_fits
@pytest.mark.parametrize(
    ("factor", "low", "high"), [(1.0, 0.0, 1.0), (0.0, 0.95, 1.0), (3.0, 0.9, 1.0)]
)
def test_networks_that_learnt_nothing_or_too_much_give_way(
    factor, low, high, monkeypatch
):
    monkeypatch.setattr(folds, "MAX_STEPS", 300)
    energy, weights = pool_of(pair(factor), TRAINING, VALIDATION)
    assert low <= sum(weights.values()) <= high
    theta, x = simulations(1000)
    grid = PRIOR.sample((200, 1))
    log_q = energy(torch.cat([theta[None], grid.expand(-1, 1000, -1)]), x).log_softmax(0)
    truth = pair(1.0).energy
    exact = truth(torch.cat([theta[None], grid.expand(-1, 1000, -1)]), x).log_softmax(0)
    assert float((exact - log_q)[0].mean()) == pytest.approx(0.0, abs=0.02)


@pytest.mark.slow
@pytest.mark.full_fits
def test_each_model_has_the_weight_where_it_is_right(monkeypatch):
    """Four simulators:

    - Gaussian errors of θ, where all models are right and may share the weight.
    - Errors of two sizes, where the exponential family is wrong.
    - Three spikes with sufficient statistics x, where the exponential family is right.
      The others come near: in four repetitions its weight was 0.1 to 0.55.
    - A curved mean, where only the synthetic likelihood is right.
    """
    monkeypatch.setattr(folds, "MAX_STEPS", 1000)
    theta, fresh = TRAINING[0][:400], VALIDATION[0][:200]

    def weights(simulator):
        torch.manual_seed(1)
        return pool_of(pair(0.0), (theta, simulator(theta)), (fresh, simulator(fresh)))[1]

    def with_outliers(theta):
        far = (torch.rand(len(theta), 1) < 0.1) * 3.0
        return theta + (NOISE / 5 + far) * torch.randn_like(theta)

    def spikes(theta):
        design = torch.tensor([[4.0, 0.0], [0.0, 4.0], [3.0, -3.0]]).double()
        return torch.bernoulli((theta @ design.T).sigmoid()) @ design / 4

    def curved(theta):
        bent = torch.stack([theta[:, 0], theta[:, 1] + 2 * theta[:, 0].square()], 1)
        return bent + NOISE / 5 * torch.randn_like(theta)

    gaussian = weights(lambda theta: theta + NOISE * torch.randn_like(theta))
    assert sum(gaussian.values()) > 0.95
    assert weights(with_outliers)["exponential_family"] < 0.2
    assert weights(spikes)["exponential_family"] > 0.2
    assert weights(curved)["synthetic_likelihood"] > 0.8


@pytest.mark.full_fits
def test_models_that_say_nothing_get_no_weight(monkeypatch):
    """The networks alone are too cautious already, and the models would add to that."""
    monkeypatch.setattr(folds, "MAX_STEPS", 300)
    theta, x = TRAINING
    models = pair(0.8)
    energy, weights = pool_of(models, (theta[torch.randperm(len(theta))], x), VALIDATION)
    assert weights == NONE
    assert energy is models.energy


def test_features_that_are_not_finite_are_refused():
    theta, x = TRAINING
    x = x.where(x < x.max(), torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        pool_of(pair(0.5), (theta, x), VALIDATION)


def test_a_few_simulations_are_gathered_at_a_time_and_no_more_than_needed(monkeypatch):
    monkeypatch.setattr(opinion_pool, "MAX_NUMBERS", 2 * 1000)
    gathered = []

    class Watched(ConcatenatedRows):
        def __getitem__(self, indices):
            gathered.append(len(indices))
            return super().__getitem__(indices)

    theta, x = simulations(3000)
    rows = torch.arange(3000).split([2000, 1000])
    fit_pool(pair(0.5), theta, Watched([x]), *rows)
    assert max(gathered) <= candidates.MAX_CONDITIONS
    assert sum(gathered) == 1 + 1000 + (1000 + 100)  # without draws, then with draws


def test_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    pool_of(pair(0.5), TRAINING, VALIDATION)
    assert torch.equal(torch.get_rng_state(), before)


class Toy:
    """A fourth model, which knows the exact log-ratio."""

    @classmethod
    def fit(cls, candidates, earlier=None, effort=1.0):
        toy = Ratio(1.0)
        toy.num_pairs, toy.earlier = len(candidates.features), earlier
        return toy


def test_a_fourth_model_needs_one_line(monkeypatch):
    """It knows the log-ratio, which the other models can't learn from 40 simulations."""
    monkeypatch.setitem(POOL_MODELS, "toy", Toy)
    theta, x = TRAINING
    energy, weights = pool_of(pair(0.0), (theta[:40], x[:40]), VALIDATION)
    assert list(weights) == [*NONE, "toy"]
    assert weights["toy"] > 0.5
    toy = next(model for model in energy.net.models if isinstance(model, Ratio))
    assert toy.num_pairs == 40 + 400
    assert toy.earlier.num_pairs == 40
    assert toy.earlier.earlier is None
