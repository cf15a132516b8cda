"""JNPE as a user of sbi meets it: what training gives, for all kinds of input."""

import inspect
import math
import pickle

import pytest
import sbi.inference
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform, MultipleIndependent
from sbi.utils.tracking import TensorBoardTracker
from torch import nn
from torch.distributions import (
    Beta,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    constraints,
)
from torch.utils.tensorboard.writer import SummaryWriter

from sbi_jeffreys import JNPE, register
from sbi_jeffreys.training.loop import JeffreysTraining
from tests.small_trainings import (
    BOX,
    FROZEN,
    Apply,
    make_trainer,
    new_trainer,
    quick,
    simulate,
)


def test_arguments_are_those_of_npe_in_its_order():
    def positional(function):
        return [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]

    assert positional(JNPE.__init__) == positional(NPE.__init__)
    assert positional(JNPE.train) == positional(NPE.train)
    assert positional(JNPE.append_simulations) == positional(NPE.append_simulations)
    assert positional(JNPE.build_posterior) == positional(NPE.build_posterior)


class Column(MultivariateNormal):
    """Its log densities have the shape `(N, 1)`."""

    def log_prob(self, value):
        return super().log_prob(value).unsqueeze(-1)


PRIORS = {
    "box": BOX,
    "normal": MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "beta": Independent(Beta(torch.ones(2), 2 * torch.ones(2)), 1),
    "gamma": Independent(Gamma(2 * torch.ones(2), torch.ones(2)), 1),
    "mixed": MultipleIndependent(
        [
            LogNormal(torch.zeros(1), torch.ones(1)),
            BoxUniform(torch.zeros(1), torch.ones(1)),
        ],
        validate_args=False,
    ),
    "log densities in a column": Column(torch.zeros(2), torch.eye(2)),
    "one parameter": BoxUniform(torch.zeros(1), torch.ones(1)),
    "none": None,
}


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_gives_a_posterior_that_stays_inside(name):
    prior = PRIORS[name]
    trainer = make_trainer(prior)
    flow = quick(trainer)
    posterior = trainer.build_posterior()
    x_o = simulate((prior or BOX).sample((3,)))
    with torch.no_grad():
        draws = flow.sample((2000,), x_o)
    if prior is not None:
        assert prior.support.check(draws.flatten(0, 1)).all()
    samples = posterior.sample((50,), x=x_o[:1], show_progress_bars=False)
    assert samples.shape == (50, draws.shape[-1])
    assert posterior.log_prob(samples, x=x_o[:1]).isfinite().all()
    batched = posterior.sample_batched((20,), x=x_o, show_progress_bars=False)
    assert batched.shape == (20, 3, draws.shape[-1])
    f = trainer.energy(batched, x_o)
    assert f.shape == (20, 3)
    assert f.isfinite().all()


class InsideDisc(constraints.Constraint):
    event_dim = 1

    def check(self, value):
        return value.square().sum(-1) < 1


class Disc(MultivariateNormal):
    """Uniform on the unit disc, whose support is no product of intervals."""

    support = InsideDisc()

    def log_prob(self, value):
        inside = self.support.check(value)
        return torch.where(inside, -math.log(math.pi), -torch.inf)

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        radius, angle = torch.rand(2, *sample_shape)
        angle = 2 * math.pi * angle
        return radius.sqrt().unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)


def test_a_prior_whose_support_is_not_mapped_trains():
    prior = Disc(torch.zeros(2), torch.eye(2), validate_args=False)
    trainer = make_trainer(prior)
    with pytest.warns(UserWarning, match="prior.* Gaussian"):
        flow = quick(trainer)
    x_o = torch.zeros(1, 2)
    draws = flow.sample((500,), x_o)
    assert not prior.support.check(draws).all()
    assert trainer.energy(draws, x_o).isfinite().all()


@pytest.mark.parametrize("prior", [BOX, PRIORS["normal"]])
def test_an_x_o_far_outside_of_training_gives_finite_samples_in_the_prior(prior):
    trainer = make_trainer(prior)
    flow = quick(trainer, max_num_epochs=20)
    x_o = torch.tensor([[1e4, -1e6], [1e30, 1e30]])
    samples, log_prob = flow.sample_and_log_prob((100,), x_o)
    assert prior.support.check(samples).all()
    assert samples.isfinite().all()
    assert log_prob.isfinite().all()
    assert trainer.energy(samples, x_o).isfinite().all()


def test_summary_has_the_keys_of_sbi_and_ours_one_entry_an_epoch(trained):
    summary = trained.summary
    assert summary["epochs_trained"] == [3]
    assert summary["best_validation_loss"] == [min(summary["validation_loss"])]
    for name in (
        "training_loss",
        "validation_loss",
        "epoch_durations_sec",
        "validation_energy_loss",
        "validation_kl_flow_energy",
        "validation_log_z",
        "validation_ess",
        "multipliers",
        "divergences",
        "learning_rate",
        "constraint_violations",
        "primal_value",
        "multiplier_gap",
    ):
        assert len(summary[name]) == 3, name
    assert min(summary["multiplier_gap"]) >= 0


@pytest.mark.parametrize(
    ("pool", "name"),
    [
        (False, "best_validation_loss"),
        (False, "followed_validation_loss"),
        (True, "followed_validation_loss"),
    ],
)
def test_the_held_out_loss_is_the_flows_in_the_parameters_own_space(pool, name):
    trainer = make_trainer(pool=pool)
    flow = quick(trainer, max_num_epochs=3)
    theta, x, _ = trainer.get_simulations()
    loss = flow.loss(theta[trainer.val_indices], x[trainer.val_indices]).mean()
    assert loss.item() == pytest.approx(trainer.summary[name][-1], abs=1e-5)


def test_a_tracker_that_cannot_write_does_not_cost_the_training(monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    trainer = make_trainer(pool=False)
    monkeypatch.setattr(type(trainer._tracker), "log_metric", full)
    with pytest.warns(UserWarning, match="tracker failed.*No space left"):
        flow = quick(trainer)
    assert trainer.flow is flow
    assert len(trainer.summary["validation_loss"]) == 2
    assert trainer.build_posterior().sample((3,), x=torch.zeros(1, 2)).shape == (3, 2)


def test_the_tracker_gets_everything():
    class Recorder:
        log_dir = None

        def __init__(self):
            self.metrics = {}

        def log_metric(self, name, value, step=None):
            self.metrics.setdefault(name, []).append((step, value))

        def log_metrics(self, metrics, step=None): ...
        def log_params(self, params): ...
        def add_figure(self, name, figure, step=None): ...
        def flush(self): ...

    tracker = Recorder()
    trainer = make_trainer(tracker=tracker)
    quick(trainer, max_num_epochs=2)
    quick(trainer, max_num_epochs=3, resume_training=True)
    for name in ("validation_ess", "multipliers/KL(flow|energy)", "learning_rate"):
        assert [step for step, _ in tracker.metrics[name]] == [0, 1, 2]
    assert "validation_loss" in tracker.metrics


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    """sbi would write `sbi-logs`; also a trainer that was pickled would."""
    monkeypatch.chdir(tmp_path)
    trainer = pickle.loads(pickle.dumps(make_trainer()))
    quick(trainer, max_num_epochs=2)
    assert list(tmp_path.iterdir()) == []
    assert len(trainer.summary["validation_loss"]) == 2
    tracker = TensorBoardTracker(SummaryWriter(tmp_path / "logs"))
    quick(make_trainer(tracker=tracker), max_num_epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_infer_finds_it_once_registered():
    register()
    with pytest.warns(UserWarning, match="max_num_epochs"):
        posterior = sbi.inference.infer(
            simulate,
            BOX,
            method="jnpe",
            num_simulations=30,
            train_kwargs={"max_num_epochs": 2},
        )
    samples = posterior.sample((2,), x=torch.zeros(1, 2), show_progress_bars=False)
    assert samples.shape == (2, 2)


def test_the_energy_shares_the_flows_embedding():
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    trainer = make_trainer(
        density_estimator="nsf",
        embedding_net=embedding,
        x=lambda theta: torch.randn(len(theta), 3, 4),
    )
    before = embedding[1].weight.clone()
    quick(trainer, max_num_epochs=1)
    assert trainer.latest.energy.embedding_net is trainer.latest.flow.embedding_net
    assert trainer.latest.flow.embedding_net is not None
    assert not torch.equal(before, embedding[1].weight)


class Net(nn.Module):
    """A log-ratio network that does not start at zero."""

    def __init__(self, condition_features=2):
        super().__init__()
        self.head = nn.Linear(2 + condition_features, 1)

    def forward(self, input, condition):
        condition = condition.expand(*input.shape[:-1], -1)
        return self.head(torch.cat([input, condition], -1)).squeeze(-1)


def test_the_energy_can_have_its_own_embedding_and_network():
    net, embedding = Net(5), nn.Linear(2, 5)
    trainer = make_trainer(energy_net=net, energy_embedding_net=embedding)
    flow = quick(trainer, max_num_epochs=1)
    assert net in trainer.energy.modules()
    assert trainer.energy.embedding_net is not flow.embedding_net
    assert not any(p is embedding.weight for p in flow.parameters())


@pytest.mark.parametrize("num", [1, 2, 5])
def test_too_few_simulations_to_split(num):
    if num > 1:
        quick(make_trainer(num=num))  # one pair, or more, to train on
    else:
        with pytest.warns(UserWarning, match="Only one"):
            trainer = make_trainer(num=num)
        with pytest.raises(ValueError, match=r"`validation_fraction=0\.1` of 1 leaves"):
            trainer.train()


@pytest.mark.parametrize(
    ("num", "given", "epochs"),
    [
        (16_000, {}, 10 + 20),
        (16_000, {"learning_rate": 1e-3}, 10 + 20),
        (60, {"stop_after_epochs": 7}, 1 + 7),
        (60, {"stop_after_epochs": 125}, 1 + 125),
    ],
)
def test_training_stops_after_two_cycles_unless_told_otherwise(num, given, epochs):
    """The held-out loss is best after the first epoch, and each has one step. The first
    cycle counts as a gain."""
    trainer = make_trainer(num=num, num_energies=1, num_particles=1)
    trainer.train(
        training_batch_size=num,
        calibration_kernel=lambda x: torch.ones(len(x)),  # without the pool
        **FROZEN,
        **given,
    )
    assert trainer.epoch == epochs


@pytest.mark.parametrize("name", ["stop_after_epochs", "max_num_epochs"])
def test_numbers_of_epochs_below_one_are_refused(name):
    with pytest.raises(ValueError, match=name):
        make_trainer().train(**{name: 0})


def test_a_training_that_may_not_end_its_first_cycle_is_warned_of():
    """Also if the networks are far behind the pool."""
    trainer = make_trainer(x=lambda theta: theta + 1e-3 * torch.randn_like(theta))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sbi_jeffreys.stages.MAX_LAG", -100.0)
        with pytest.warns(UserWarning, match="max_num_epochs=2"):
            trainer.train(max_num_epochs=2)
    assert trainer.epoch == 2 < trainer._fit.training.cycles.end(0)


def test_a_batch_larger_than_the_data_is_cut():
    trainer = make_trainer(num=40)
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(training_batch_size=10_000, max_num_epochs=2)


def test_parameters_that_do_not_vary_on_a_bound_of_the_prior():
    trainer = new_trainer()
    theta = torch.ones(60, 2)
    with pytest.warns(UserWarning, match="not a sample of the prior"):
        trainer.append_simulations(theta, simulate(theta))
    flow = quick(trainer)
    assert all(p.isfinite().all() for p in flow.parameters())


def test_columns_that_do_not_vary():
    with pytest.warns(UserWarning, match="constant"):
        trainer = make_trainer(
            x=lambda theta: torch.cat([simulate(theta), torch.ones(len(theta), 1)], -1)
        )
    flow = quick(trainer)
    x = torch.tensor([[0.1, 0.2, 1.0]])
    assert flow.sample((10,), x).isfinite().all()


def test_data_loader_arguments():
    trainer = make_trainer()
    quick(trainer, dataloader_kwargs={"collate_fn": _stack, "drop_last": False})
    assert _stack.calls > 0
    with pytest.raises(ValueError, match="`dataloader_kwargs`"):
        trainer.train(
            force_first_round_loss=True, dataloader_kwargs={"batch_size": 10_000}
        )


def _stack(rows):
    _stack.calls += 1
    return [torch.stack(column) for column in zip(*rows, strict=True)]


_stack.calls = 0


def _positive(x):
    return (x[:, 0] > 0).float()


def test_a_calibration_kernel_weighs_simulations():
    trainer = make_trainer()
    flow = quick(trainer, calibration_kernel=_positive)
    theta, x, _ = trainer.get_simulations()
    theta, x = theta[trainer.val_indices], x[trainer.val_indices]
    assert 0 < _positive(x).mean() < 1
    loss = (_positive(x) * flow.loss(theta, x)).mean() / _positive(x).mean()
    assert loss.item() == pytest.approx(
        trainer.summary["best_validation_loss"][-1], abs=1e-5
    )


def test_the_size_of_a_calibration_kernel_does_not_matter():
    losses = []
    for size in (1.0, 1e-3, 256.0):
        trainer = make_trainer()
        quick(trainer, calibration_kernel=lambda x, size=size: size * (1 + _positive(x)))
        losses.append(trainer.summary["validation_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] == pytest.approx(losses[2], abs=1e-4)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (lambda x: torch.zeros(len(x)), r"got a mean of 0\.0"),
        (lambda x: -torch.ones(len(x)), r"got a mean of -1\.0"),
        (lambda x: x[:, 0] * torch.nan, "got a mean of nan"),
        (lambda x: x[:, 0].square() / 0, "got a mean of inf"),
        (lambda x: torch.ones(3), r"shape \(108,\), got \(3,\)"),
        (lambda x: torch.ones(len(x), 1), r"shape \(108,\), got \(108, 1\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_training(kernel, message):
    trainer = make_trainer(pool=False)
    with pytest.raises(ValueError, match=f"`calibration_kernel` .*{message}"):
        trainer.train(calibration_kernel=kernel)
    assert trainer.flow is None
    quick(trainer, max_num_epochs=1)


@pytest.mark.parametrize("argument", ["embedding_net", "energy_embedding_net"])
@pytest.mark.parametrize("density_estimator", ["nsf", "maf"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.sum(1), r"features of shape \(batch, features\) .* got \(2,\)"),
        (lambda x: x.double(), "features of dtype torch.float32, got torch.float64"),
        (lambda x: x / 0, "finite features, got NaN or infinite ones"),
    ],
)
def test_features_that_do_not_fit_are_refused_before_the_first_epoch(
    argument, density_estimator, function, message, monkeypatch
):
    trainer = make_trainer(
        density_estimator=density_estimator, **{argument: Apply(function)}
    )
    monkeypatch.setattr(JeffreysTraining, "run", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=f"Expected `{argument}` to return {message}"):
        trainer.train()


def test_log_ratios_of_another_shape_are_refused():
    class Wrong(nn.Module):
        def forward(self, input, condition):
            return input.sum(-1)[..., :3]

    trainer = make_trainer(energy_net=Wrong(), pool=False)
    with pytest.raises(ValueError, match=r"return shape \(\d, 108\), .* got \(\d, 3\)"):
        trainer.train()
    assert trainer.flow is None


@pytest.mark.gpu
@pytest.mark.parametrize("data_device", ["cuda", "cpu"])
def test_trains_on_a_gpu(data_device):
    prior = BoxUniform(-torch.ones(2), torch.ones(2), device="cuda")
    trainer = new_trainer(prior, device="cuda")
    theta = prior.sample((200,)).to(data_device)
    trainer.append_simulations(theta, simulate(theta), data_device=data_device)
    flow = quick(trainer)
    assert all(p.is_cuda for p in flow.parameters())
    samples = trainer.build_posterior().sample((5,), x=torch.zeros(1, 2, device="cuda"))
    assert samples.is_cuda
