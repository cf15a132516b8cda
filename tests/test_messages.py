"""What sbi's trainer says and does, where that is not true of this one."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils import RestrictedPrior, get_density_thresholder
from torch import nn

from tests.small_trainings import (
    BOX,
    make_trainer,
    new_trainer,
    quick,
    same_weights,
    simulate,
)


def pickled(trainer):
    return pickle.loads(pickle.dumps(trainer))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("density_estimator", ["nsf", "maf", "zuko_nsf"])
def test_a_copy_that_was_not_trained_trains_as_the_original(copied, density_estimator):
    trainer = make_trainer(density_estimator=density_estimator, pool=False)
    with pytest.warns(UserWarning, match="has a tracker of its own") as found:
        other = copied(trainer)
    assert [str(w.message) for w in found if "scratch" in str(w.message)] == []
    weights = []
    for each in (trainer, other):
        torch.manual_seed(0)
        weights.append(quick(each, max_num_epochs=1))
    assert same_weights(*weights)
    again = quick(other, max_num_epochs=1, retrain_from_scratch=True)
    assert not same_weights(again, weights[0])


def test_a_network_without_parameters_embeds_x_for_flows_of_sbi():
    trainer = make_trainer(
        density_estimator="maf",
        embedding_net=nn.Flatten(),
        x=lambda theta: simulate(theta).unsqueeze(1),
        pool=False,
    )
    assert quick(trainer, max_num_epochs=1).condition_shape == (1, 2)


def test_after_a_truncated_round_no_proposal_is_asked_for():
    trainer = make_trainer(pool=False)
    quick(trainer)
    posterior = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    inside = get_density_thresholder(posterior, 1e-2, 500)
    proposal = RestrictedPrior(BOX, inside, sample_with="rejection")
    theta = proposal.sample((60,), show_progress_bars=False)
    trainer.append_simulations(theta, simulate(theta), proposal)
    with pytest.raises(ValueError, match="force_first_round_loss") as error:
        trainer.train()
    assert "proposal" not in str(error.value)


@pytest.mark.parametrize("kind", ["direct", "energy", "rejection"])
def test_before_training_there_is_no_posterior(kind):
    for trainer in (new_trainer(), make_trainer()):
        with pytest.raises(RuntimeError, match=r"call `\.train\(\)` first"):
            trainer.build_posterior(sample_with=kind)


def test_what_a_posterior_is_built_with(trained):
    for name in ("ode", "sde", "filtered_direct", "flow", None):
        with pytest.raises(ValueError, match=r"`sample_with` to be one of .*'energy'"):
            trained.build_posterior(sample_with=name)
    without = make_trainer(prior=None, pool=False)
    quick(without, max_num_epochs=1)
    for name in ("energy", "rejection"):
        with pytest.raises(ValueError, match=f"`prior` for `sample_with='{name}'`"):
            without.build_posterior(sample_with=name)
    without.build_posterior(prior=BOX, sample_with="energy")
    parameters = MCMCPosteriorParameters(num_chains=2)
    assert without.build_posterior(prior=BOX, posterior_parameters=parameters)


def test_posteriors_say_what_they_do(trained):
    """Neither rejects samples outside of the prior."""
    for kind in ("direct", "energy"):
        text = str(trained.build_posterior(sample_with=kind))
        assert "reject" not in text
        assert "samples" in text


def test_kept_simulations_are_not_said_to_spoil_training(caplog):
    x = torch.randn(60, 2)
    x[3] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new_trainer().append_simulations(BOX.sample((60,)), x, exclude_invalid_x=False)
    assert "Found 1 NaN simulations and 0 Inf simulations. They are kept" in caplog.text
    assert "fail" not in caplog.text


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("training_batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("clip_max_norm", math.nan),
        ("clip_max_norm", -1.0),
        ("clip_max_norm", 0.0),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("validation_fraction", 1.5),
        ("validation_fraction", 0.995),  # nothing left to train on
        ("stop_after_epochs", 0),
        ("max_num_epochs", 0),
    ],
)
def test_arguments_of_train_that_are_out_of_range(argument, value):
    trainer = make_trainer(pool=False)
    with pytest.raises(ValueError, match=argument):
        trainer.train(**{argument: value})
    quick(trainer, max_num_epochs=1)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 0.995, 1.5])
def test_fractions_that_leave_nothing_are_not_chosen(fraction):
    trainer = make_trainer(pool=False)
    with pytest.raises(ValueError, match=f"`validation_fraction={fraction}` of 120"):
        trainer.hold_out(fraction)
    quick(trainer, max_num_epochs=1)
    assert len(trainer.val_indices) == 12


def test_what_was_trained_before_names_the_choices_there_are(trained):
    with pytest.raises(ValueError, match="already been trained") as error:
        trained.train()
    for choice in ("resume_training", "force_first_round_loss", "retrain_from_scratch"):
        assert f"`{choice}=True`" in str(error.value)


def test_arguments_of_npe_that_have_no_effect():
    weights = []
    for arguments in (
        {},
        {"num_atoms": 2, "discard_prior_samples": True, "use_combined_loss": True},
    ):
        trainer = make_trainer(pool=False)
        weights.append(quick(trainer, max_num_epochs=1, **arguments))
    assert same_weights(*weights)
