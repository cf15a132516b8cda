"""The options of JNPE: what they do, and which values they can't have."""

import numpy as np
import pytest
import torch
from sbi.neural_nets import posterior_nn
from torch import nn
from torch.distributions import Beta, Independent

from sbi_jeffreys import JNPE
from sbi_jeffreys.options import JeffreysOptions
from sbi_jeffreys.pool import opinion_pool
from sbi_jeffreys.pool.registry import POOL_MODELS, pool_models
from tests.small_trainings import BOX, SMALL, make_trainer, quick


@pytest.mark.parametrize("name", ["nsf", "MAF", "zuko_nsf", posterior_nn("maf")])
def test_estimators_by_name_and_by_builder(name):
    flow = quick(make_trainer(density_estimator=name), max_num_epochs=1)
    assert flow.log_prob(torch.zeros(1, 2), torch.zeros(1, 2)).shape == (1, 1)


@pytest.mark.parametrize("normalizer", ["generalized", "importance", "ranking"])
@pytest.mark.parametrize("weighting", ["resilient", "constrained", "fixed"])
def test_options_of_the_method(normalizer, weighting):
    """A high least weight holds where constraints are slack; that of D2 is as given."""
    trainer = make_trainer(
        normalizer=normalizer, weighting=weighting, weights=(1, 0.5, 1), num_particles=2
    )
    quick(trainer, max_num_epochs=4)
    first, second, third = trainer.summary["multipliers"][-1]
    assert ([first, second, third] == [1.0, 0.5, 1.0]) or weighting != "fixed"
    assert (second == 0.5) is (weighting != "resilient")
    assert min(first, third) >= 1 or weighting == "resilient"
    recorded = len(trainer.summary.get("constraint_violations", ()))
    assert recorded == (0 if weighting == "fixed" else 4)


@pytest.mark.parametrize("num", [1, 3])
def test_a_builder_is_called_for_each_energy(num):
    trainer = make_trainer(num_energies=num, slack=(0.5, 1.0, 2.0))
    quick(trainer, max_num_epochs=2)
    assert len(trainer.latest.energy.net) == num
    theta, x = trainer.get_simulations()[:2]
    members = trainer.latest.energy.members(theta[:4].unsqueeze(0), x[:4])
    assert members.shape == (num, 1, 4)
    if num > 1:  # each has started, and is, different from the others
        assert (members.std(0) > 0).all()


def test_construction_without_arguments():
    trainer = JNPE()
    with pytest.raises(RuntimeError, match=r"call `.train\(\)` first"):
        _ = trainer.energy
    with pytest.raises(RuntimeError, match="No simulations found"):
        trainer.train()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_energies", 0),
        ("num_energies", 2.5),
        ("num_particles", 0),
        ("slack", (0.2, 1.0)),
        ("slack", -1.0),
        ("normalizer", "softmax"),
        ("weighting", "learnt"),
        ("weights", (1.0, 1.0)),
        ("weights", (0.0, 0.0, 0.0)),
        ("weights", 1.0),
        ("relaxation_cost", 0.0),
        ("multiplier_step_size", -1.0),
        ("multiplier_bounds", (2.0, 1.0)),
        ("multiplier_bounds", 1.0),
        ("energy_learning_rate", 0.0),
        ("density_estimator", "mdn"),
        ("density_estimator", "spline"),
        ("pool", "linear"),
        ("pool", ("linear_model", "quadratic_model")),
    ],
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=f"`{option}`"):
        JNPE(BOX, **{option: value})


@pytest.mark.parametrize("weighting", ["fixed", "constrained"])
def test_weights_may_be_an_array(weighting):
    options = JeffreysOptions(weighting=weighting, weights=np.array([2.0, 3.0, 4.0]))
    assert options.multipliers("cpu").values.tolist() == [2.0, 3.0, 4.0]


def test_an_option_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match="'num_energys'"):
        JNPE(BOX, num_energys=2)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("energy_net", 3, "a module or a function that builds one, got 3"),
        ("embedding_net", torch.relu, "a torch module, got <built-in"),
        ("embedding_net", nn.Flatten, "a torch module, got <class"),
        ("energy_embedding_net", torch.relu, "a torch module, got <built-in"),
    ],
)
def test_what_is_no_network_is_refused_by_name(argument, value, message):
    with pytest.raises(TypeError, match=f"Expected `{argument}` to be {message}"):
        JNPE(BOX, **{argument: value})


def test_an_embedding_with_a_builder_is_refused():
    with pytest.raises(ValueError, match="embedding_net"):
        JNPE(BOX, SMALL, embedding_net=nn.Identity())


def test_an_estimator_that_cannot_be_trained_is_refused_before_training():
    trainer = make_trainer(density_estimator=posterior_nn("mdn"))
    with pytest.raises(TypeError, match="differentiably"):
        trainer.train()


@pytest.mark.parametrize("built", [None, nn.Linear(2, 2)])
def test_a_builder_of_something_else_is_refused_before_training(built):
    trainer = make_trainer(density_estimator=lambda theta, x: built)
    name = type(built).__name__
    with pytest.raises(TypeError, match=f"`density_estimator` builds a {name}"):
        trainer.train()


def test_a_batch_of_priors_is_not_a_prior():
    """As in sbi's `process_prior`."""
    batch = Beta(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"`prior` .* a batch of 2 .*Independent"):
        JNPE(batch)
    JNPE(Independent(batch, 1))
    JNPE(Beta(torch.ones(1), torch.ones(1)))


@pytest.mark.parametrize(
    ("pool", "names"),
    [
        (True, tuple(POOL_MODELS)),
        (False, ()),
        ((), ()),
        ("exponential_family", ("exponential_family",)),
        (["exponential_family", "linear_model"], ("linear_model", "exponential_family")),
        ({"synthetic_likelihood"}, ("synthetic_likelihood",)),
    ],
)
def test_models_of_the_pool_are_those_that_are_named(pool, names, monkeypatch):
    assert pool_models(pool) == names
    fitted, fit = set(), opinion_pool._fit

    def watched(kind, *arguments):
        fitted.add(kind)
        return fit(kind, *arguments)

    monkeypatch.setattr(opinion_pool, "_fit", watched)
    trainer = make_trainer(pool=pool)
    quick(trainer)
    assert fitted == {POOL_MODELS[name] for name in names}
    for name in POOL_MODELS:
        (weight,) = trainer.summary[f"{name}_weight"]
        assert weight == 0.0 or name in names


def test_an_unknown_model_of_the_pool_is_named():
    with pytest.raises(ValueError, match=r"`pool` .* linear_model, .* got nonsense\."):
        JNPE(BOX, pool=("nonsense", "linear_model"))


@pytest.mark.parametrize("pool", [None, 3])
def test_a_pool_that_is_neither_a_bool_nor_names_is_refused(pool):
    with pytest.raises(TypeError, match=f"`pool` to be a bool or names of .* got {pool}"):
        JNPE(BOX, pool=pool)
