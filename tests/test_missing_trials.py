"""Trials that are missing from x, as NaN, with a network that knows them."""

import math

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import FCEmbedding, PermutationInvariantEmbedding

from sbi_jeffreys import calibrate
from tests.small_trainings import BOX, new_trainer, quick

MOST = 4
"""Trials of an x, of which some are missing."""


def set_net():
    return PermutationInvariantEmbedding(
        FCEmbedding(2, output_dim=4, num_hiddens=8),
        4,
        num_hiddens=8,
        output_dim=4,
        aggregation_fn="mean",
    )


def trials(theta):
    """Simulate one to four trials of each of `theta`, `(N, 4, 2)`, NaN from there on."""
    x = theta.unsqueeze(1) + 0.3 * torch.randn(len(theta), MOST, 2)
    x[torch.arange(MOST) >= torch.randint(1, MOST + 1, (len(theta), 1))] = torch.nan
    return x


def make_trainer(density_estimator, **options):
    torch.manual_seed(0)
    trainer = new_trainer(BOX, density_estimator, **options)
    theta = BOX.sample((150,))
    trainer.append_simulations(theta, trials(theta), exclude_invalid_x=False)
    quick(trainer, max_num_epochs=3)
    return trainer


@pytest.fixture(scope="module", params=["nsf", "builder of sbi"])
def padded(request):
    if request.param == "nsf":
        return make_trainer("nsf", embedding_net=set_net())
    return make_trainer(posterior_nn("nsf", embedding_net=set_net(), z_score_x="none"))


@pytest.mark.parametrize("kind", ["direct", "energy"])
def test_an_observation_may_have_fewer_trials(padded, kind):
    posterior = padded.build_posterior(sample_with=kind)
    x = trials(BOX.sample((3,)))
    x[0, 1:] = torch.nan
    assert posterior.sample((50,), x=x[0]).isfinite().all()
    assert posterior.sample_batched((50,), x).isfinite().all()
    assert posterior.log_prob(torch.zeros(3, 2), x=x[:1]).isfinite().all()
    assert posterior.log_prob_batched(torch.zeros(3, 2), x).isfinite().all()
    assert posterior.potential(torch.zeros(3, 2), x=x[:1]).isfinite().all()
    posterior.set_default_x(x[0])
    assert posterior.map(num_iter=3, num_init_samples=20).isfinite().all()
    report = posterior.agreement(x)
    assert report.x_p_value.isfinite().all()
    assert (report.x_p_value > 0.01).all()
    with pytest.raises(ValueError, match="`x`, got infinite entries"):
        posterior.sample((5,), x=torch.full((1, MOST, 2), math.inf))


def test_the_joint_posterior_of_observations_with_missing_trials(padded):
    posterior = padded.build_posterior(sample_with="energy")
    x = trials(BOX.sample((2,)))
    assert posterior.sample((50,), x=x).isfinite().all()


def test_where_in_x_a_trial_is_missing_makes_no_difference():
    builder = posterior_nn("nsf", embedding_net=set_net(), z_score_x="none")
    embed = make_trainer(builder, pool=False).energy.embedding_net
    x = trials(BOX.sample((5,)))
    torch.testing.assert_close(embed(x), embed(x.flip(1)))


def test_without_missing_trials_in_training_they_are_refused_later():
    torch.manual_seed(0)
    trainer = new_trainer(BOX, "nsf", embedding_net=set_net(), pool=False)
    theta = BOX.sample((60,))
    trainer.append_simulations(theta, trials(theta).nan_to_num(0.0))
    quick(trainer, max_num_epochs=1)
    x = trials(theta[:1])
    x[0, -1] = torch.nan
    for kind in ("direct", "energy"):
        posterior = trainer.build_posterior(sample_with=kind)
        with pytest.raises(
            ValueError, match=r"`x` without NaN, got NaN in 1 of 1.*train"
        ):
            posterior.sample((5,), x=x)


@pytest.mark.parametrize("default", ["nsf", "maf"])
def test_without_a_network_that_knows_them_they_are_refused_before_training(default):
    trainer = new_trainer(BOX, default, pool=False)
    theta = BOX.sample((60,))
    trainer.append_simulations(theta, trials(theta), exclude_invalid_x=False)
    with pytest.raises(ValueError, match="features"):
        trainer.train()


def test_calibration_keeps_them(padded):
    theta = BOX.sample((60,))
    x = trials(theta)
    x[:5] = math.inf
    with pytest.warns(UserWarning, match="55 simulations reveal only large errors"):
        result = calibrate(padded.build_posterior(), theta, x, num_posterior_samples=80)
    assert result.ranks.shape == (55, 2)
