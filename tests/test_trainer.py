"""JNPE as a user of sbi meets it."""

import inspect
import math
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sbi
import sbi.inference
import torch
from sbi.inference import NPE
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.inference.trainers.base import NeuralInference
from sbi.neural_nets import posterior_nn
from sbi.utils import (
    BoxUniform,
    MultipleIndependent,
    RestrictedPrior,
    get_density_thresholder,
)
from torch import Tensor, nn
from torch.distributions import (
    Beta,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    constraints,
)

from sbi_jeffreys import JNPE, LogRatioNet, build_spline_flow, data, register
from sbi_jeffreys.data.batches import StreamedBatches
from sbi_jeffreys.training.loop import JeffreysTraining

BOX = BoxUniform(-torch.ones(2), torch.ones(2))
SMALL = partial(build_spline_flow, hidden_features=8, num_transforms=2, num_bins=4)
ENERGY = partial(LogRatioNet, hidden_features=16)


def simulate(theta):
    return theta + 0.3 * torch.randn_like(theta)


def make_trainer(prior=BOX, density_estimator=SMALL, num=120, x=None, seed=0, **options):
    torch.manual_seed(seed)
    options = {"energy_net": ENERGY, "show_progress_bars": False, **options}
    trainer = JNPE(prior, density_estimator, **options)
    theta = (prior or BOX).sample((num,))
    x = simulate(theta) if x is None else x(theta)
    return trainer.append_simulations(theta, x)


def quick(trainer, max_num_epochs=2, **arguments):
    with pytest.warns(UserWarning, match="max_num_epochs"):
        return trainer.train(
            training_batch_size=50, max_num_epochs=max_num_epochs, **arguments
        )


# ---------------------------------------------------------------- the host's seams


def test_sbi_is_the_version_whose_private_seams_are_used():
    assert sbi.__version__.startswith("0.27."), (
        "JNPE overrides private methods of sbi 0.27; check every test below, then move "
        "the pin in setup.cfg."
    )
    expected = "self train_loader val_loader train_config loss_args summarization_kwargs"
    loop = inspect.signature(NeuralInference._run_training_loop)
    assert " ".join(loop.parameters) == expected, "sbi's training seam has moved"


def test_arguments_are_those_of_npe_in_its_order():
    def positional(function):
        return [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is not parameter.KEYWORD_ONLY
        ]

    assert positional(JNPE.__init__) == positional(NPE.__init__)
    assert positional(JNPE.train) == positional(NPE.train)
    assert positional(JNPE.append_simulations) == positional(NPE.append_simulations)
    assert positional(JNPE.build_posterior) == positional(NPE.build_posterior)


# ---------------------------------------------------------------- what it gives


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


@pytest.mark.parametrize("name", ["nsf", "MAF", "zuko_nsf", posterior_nn("maf")])
def test_estimators_by_name_and_by_builder(name):
    flow = quick(make_trainer(density_estimator=name), max_num_epochs=1)
    assert flow.log_prob(torch.zeros(1, 2), torch.zeros(1, 2)).shape == (1, 1)


@pytest.mark.parametrize("normalizer", ["generalized", "importance", "ranking"])
@pytest.mark.parametrize("weighting", ["resilient", "fixed"])
def test_options_of_the_method(normalizer, weighting):
    trainer = make_trainer(
        normalizer=normalizer, weighting=weighting, weights=(1, 0.5, 1), num_particles=2
    )
    quick(trainer, max_num_epochs=4)
    multipliers = trainer.summary["multipliers"]
    assert (multipliers[-1] == [1.0, 0.5, 1.0]) == (weighting == "fixed")


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


def test_summary_has_the_keys_of_sbi_and_ours_one_entry_an_epoch():
    trainer = make_trainer()
    quick(trainer, max_num_epochs=3)
    summary = trainer.summary
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
        "duality_gap",
    ):
        assert len(summary[name]) == 3, name
    assert min(summary["duality_gap"]) >= 0


def test_the_held_out_loss_is_the_flows_in_the_parameters_own_space():
    trainer = make_trainer()
    flow = quick(trainer, max_num_epochs=3)
    theta, x, _ = trainer.get_simulations()
    loss = flow.loss(theta[trainer.val_indices], x[trainer.val_indices]).mean()
    assert loss.item() == pytest.approx(trainer._best_val_loss, abs=1e-5)


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


def test_resuming_is_exact_also_through_a_pickle():
    whole = make_trainer()
    quick(whole, max_num_epochs=6)
    parts = make_trainer()
    quick(parts, max_num_epochs=2)
    with pytest.warns(UserWarning, match="pickled"):
        parts = pickle.loads(pickle.dumps(parts))
    quick(parts, max_num_epochs=6, resume_training=True)
    for got, want in zip(
        parts._neural_net.parameters(), whole._neural_net.parameters(), strict=True
    ):
        assert torch.equal(got, want)
    assert parts.summary["validation_loss"] == whole.summary["validation_loss"]


def test_posteriors_and_energy_can_be_pickled():
    trainer = make_trainer()
    quick(trainer)
    x_o = torch.zeros(1, 2)
    posterior = pickle.loads(pickle.dumps(trainer.build_posterior()))
    assert posterior.sample((3,), x=x_o, show_progress_bars=False).shape == (3, 2)
    energy = pickle.loads(pickle.dumps(trainer.energy))
    theta = torch.zeros(4, 1, 2)
    torch.testing.assert_close(energy(theta, x_o), trainer.energy(theta, x_o))


@pytest.mark.parametrize("sample_with", ["mcmc", "rejection", "vi", "importance"])
def test_sbis_other_posteriors_on_the_flow(sample_with):
    trainer = make_trainer()
    quick(trainer)
    parameters = {}
    if sample_with == "mcmc":
        parameters["posterior_parameters"] = MCMCPosteriorParameters(
            warmup_steps=2, num_chains=2, thin=1
        )
    posterior = trainer.build_posterior(sample_with=sample_with, **parameters)
    posterior.set_default_x(torch.zeros(1, 2))
    if sample_with == "vi":
        posterior.train(max_num_iters=5, show_progress_bar=False)
    assert posterior.sample((4,), show_progress_bars=False).shape == (4, 2)


def test_infer_finds_it_once_registered():
    register()
    posterior = sbi.inference.infer(simulate, BOX, method="jnpe", num_simulations=30)
    samples = posterior.sample((2,), x=torch.zeros(1, 2), show_progress_bars=False)
    assert samples.shape == (2, 2)


def test_construction_without_arguments():
    trainer = JNPE()
    with pytest.raises(RuntimeError, match=r"call `.train\(\)` first"):
        _ = trainer.energy
    with pytest.raises(RuntimeError, match="No simulations found"):
        trainer.train()


def test_more_simulations_continue_from_the_present_weights():
    trainer = make_trainer()
    flow = quick(trainer)
    theta = BOX.sample((100,))
    trainer.append_simulations(theta, simulate(theta))
    with pytest.raises(ValueError, match="already been trained"):
        trainer.train()
    assert quick(trainer, force_first_round_loss=True) is flow
    assert (
        quick(trainer, force_first_round_loss=True, retrain_from_scratch=True) is not flow
    )


# ---------------------------------------------------------------- networks


def test_the_energy_shares_the_flows_embedding():
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    trainer = make_trainer(
        density_estimator="nsf",
        embedding_net=embedding,
        x=lambda theta: torch.randn(len(theta), 3, 4),
    )
    before = embedding[1].weight.clone()
    flow = quick(trainer, max_num_epochs=1)
    assert trainer._trained_energy.embedding_net is flow.embedding_net
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


def test_posteriors_have_the_energys_embedding_though_it_has_no_weights():
    class Square(nn.Module):
        def forward(self, x):
            return x.square()

    trainer = make_trainer(
        density_estimator="nsf",
        embedding_net=nn.Flatten(),
        energy_embedding_net=Square(),
        energy_net=Net(),
    )
    quick(trainer, max_num_epochs=1)
    posterior = trainer.build_posterior(sample_with="energy")
    theta, x = (values[:5] for values in trainer.get_simulations()[:2])
    want = trainer.energy(theta[None], x)
    assert torch.equal(posterior.pair.energy(theta[None], x), want)


# ---------------------------------------------------------------- input


def test_invalid_simulations_are_left_out_as_in_sbi():
    theta = BOX.sample((100,))
    x = simulate(theta)
    x[:7, 0] = float("nan")
    x[7:9] = float("inf")
    trainer = JNPE(BOX, show_progress_bars=False)
    trainer.append_simulations(theta, x)
    assert len(trainer.get_simulations()[0]) == 91
    keeping = JNPE(BOX, SMALL, show_progress_bars=False)
    with pytest.warns(UserWarning, match="outliers"):
        keeping.append_simulations(theta, x, exclude_invalid_x=False)
    with pytest.raises(FloatingPointError, match="epoch 1"):
        keeping.train()


def test_bad_parameters_are_counted():
    theta = BOX.sample((10,))
    theta[3, 1] = float("nan")
    with pytest.raises(ValueError, match="finite `theta`, but 1 of 10"):
        JNPE(BOX).append_simulations(theta, theta.nan_to_num())
    outside = BOX.sample((10,))
    outside[:4] += 3
    with pytest.raises(ValueError, match="4 of 10 `theta`"):
        JNPE(BOX).append_simulations(outside, outside)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(AssertionError, match="must match the number"):
        JNPE(BOX).append_simulations(BOX.sample((5,)), torch.zeros(4, 2))
    with pytest.warns(UserWarning, match="constant"):
        trainer = JNPE().append_simulations(torch.zeros(5), torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"shape \(num_simulations, D\).* new trainer"):
        trainer.train()
    with pytest.raises(ValueError, match="finite `theta`, but 5 of 5"):
        JNPE().append_simulations(torch.full((5,), torch.nan), torch.zeros(5, 1))


@pytest.mark.parametrize("num", [1, 2, 5])
def test_too_few_simulations_to_split(num):
    if num > 1:
        quick(make_trainer(num=num))  # one pair, or more, to train on
    else:
        with pytest.warns(UserWarning, match="Only one"):
            trainer = make_trainer(num=num)
        with pytest.raises(ValueError, match="but 1 with `validation_fraction"):
            trainer.train()


@pytest.mark.parametrize(
    ("num", "epochs"), [(60, 200), (1000, 200), (2000, 100), (10_000, 20), (30_000, 20)]
)
def test_patience_falls_with_the_number_of_simulations(monkeypatch, num, epochs):
    """Unless it is given."""
    seen = []

    def run(training, *batches, stop_after_epochs, **options):
        seen.append(stop_after_epochs)
        raise KeyboardInterrupt

    monkeypatch.setattr(JeffreysTraining, "run", run)
    for given in ({}, {"stop_after_epochs": 7}):
        with pytest.raises(KeyboardInterrupt):
            make_trainer(num=num).train(**given)
    assert seen == [epochs, 7]


def test_a_training_that_stalls_in_the_last_epoch_it_may_train_is_not_warned_of(recwarn):
    trainer = make_trainer()
    trainer.train(stop_after_epochs=2)
    again = make_trainer()
    again.train(stop_after_epochs=2, max_num_epochs=trainer.epoch)
    assert again.epoch == trainer.epoch
    assert not [w for w in recwarn if "max_num_epochs" in str(w.message)]


def test_a_batch_larger_than_the_data_is_cut():
    trainer = make_trainer(num=40)
    with pytest.warns(UserWarning, match="max_num_epochs"):
        trainer.train(training_batch_size=10_000, max_num_epochs=2)


def test_parameters_that_do_not_vary_on_a_bound_of_the_prior():
    trainer = JNPE(BOX, SMALL, energy_net=ENERGY, show_progress_bars=False)
    theta = torch.ones(60, 2)
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


# ---------------------------------------------------------------- data without copies


def save(folder, **arrays):
    """Return memory maps, which can't be written, of tensors saved to files."""
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values.numpy())
    return [np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays]


def new_trainer():
    return JNPE(BOX, SMALL, energy_net=ENERGY, show_progress_bars=False)


def same_weights(some, others):
    pairs = zip(some.parameters(), others.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("num_appended", [1, 3])
def test_data_on_disk_train_as_data_in_memory_do(tmp_path, monkeypatch, num_appended):
    trainers = []
    streamed = []
    deliver = StreamedBatches._deliver
    monkeypatch.setattr(
        StreamedBatches,
        "_deliver",
        lambda self, batches: streamed.append(self) or deliver(self, batches),
    )
    for on_disk in (False, True):
        torch.manual_seed(0)
        theta = BOX.sample((150,))
        x = simulate(theta)
        trainer = new_trainer()
        parts = zip(theta.chunk(num_appended), x.chunk(num_appended), strict=True)
        for i, part in enumerate(parts):
            if on_disk:
                (tmp_path / f"{i}").mkdir()
                part = save(tmp_path / f"{i}", theta=part[0], x=part[1])
            trainer.append_simulations(*part)
        quick(trainer, max_num_epochs=3)
        trainers.append(trainer)
        assert bool(streamed) == on_disk
    in_memory, mapped = trainers
    assert same_weights(in_memory._neural_net, mapped._neural_net)
    for got, want in zip(mapped.get_simulations(), (theta, x), strict=False):
        assert torch.equal(got, want)

    quick(in_memory, max_num_epochs=5, resume_training=True)
    with pytest.warns(UserWarning, match="pickled"):
        mapped = pickle.loads(pickle.dumps(mapped))
    quick(mapped, max_num_epochs=5, resume_training=True)
    assert same_weights(in_memory._neural_net, mapped._neural_net)


def test_tensors_arrays_and_files_are_kept_without_a_copy(tmp_path):
    tensor = BOX.sample((50,))
    mapped = save(tmp_path, theta=tensor, x=simulate(tensor))
    for theta, x in ((tensor, simulate(tensor)), (tensor.numpy(), mapped[1]), mapped):
        trainer = new_trainer().append_simulations(theta, x)
        for kept, given in zip(trainer.get_simulations(), (theta, x), strict=False):
            pointer = given.data_ptr() if isinstance(given, Tensor) else given.ctypes.data
            assert kept.data_ptr() == pointer


def test_invalid_rows_of_files_are_left_out(tmp_path, caplog):
    theta = BOX.sample((50,))
    x = simulate(theta)
    x[7, 1] = math.nan
    trainer = new_trainer().append_simulations(*save(tmp_path, theta=theta, x=x))
    assert "Found 1 NaN simulations and 0 Inf" in caplog.text
    kept = torch.arange(50) != 7
    assert torch.equal(trainer.get_simulations()[0], theta[kept])
    assert torch.equal(trainer.get_simulations()[1], x[kept])
    quick(trainer)


def test_bad_rows_are_counted_in_all_chunks(monkeypatch):
    monkeypatch.setattr(data, "MAX_ROWS", 8)
    theta = BOX.sample((50,))
    outside = theta.clone()
    outside[::10] += 3
    with pytest.raises(ValueError, match="5 of 50 `theta` are outside"):
        new_trainer().append_simulations(outside, theta)
    outside[::10] = math.nan
    with pytest.raises(ValueError, match="5 of 50 have NaN"):
        new_trainer().append_simulations(outside, theta)
    trainer = new_trainer().append_simulations(theta, simulate(theta))
    flow = quick(trainer)  # standardised by 8 rows of the training set
    first = theta[trainer.train_indices[:8]]
    u, _ = flow.support(first)
    torch.testing.assert_close(u.std(0), torch.ones(2))


def test_arrays_that_would_have_to_be_copied_are_refused():
    theta = BOX.sample((10,))
    with pytest.raises(TypeError, match="`theta` of dtype float32, got float64"):
        new_trainer().append_simulations(theta.double().numpy(), theta)
    with pytest.raises(TypeError, match="`x` to be a tensor or a NumPy array"):
        new_trainer().append_simulations(theta, theta.tolist())


def test_simulations_are_kept_on_one_device():
    theta = BOX.sample((20,))
    trainer = new_trainer().append_simulations(theta, simulate(theta))
    with pytest.raises(ValueError, match="`data_device` to be 'cpu', where simulations"):
        trainer.append_simulations(theta, simulate(theta), data_device="cuda")
    trainer.append_simulations(theta.numpy(), simulate(theta).numpy(), data_device="cpu")
    assert len(trainer.get_simulations()[0]) == 40


def test_simulations_of_another_shape_than_before_are_refused():
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"`x` of shape \('N', 2\), .* got \(10, 3\)"):
        trainer.append_simulations(BOX.sample((10,)), torch.randn(10, 3))


MEMORY_OF_A_RUN = """
import sys, warnings, numpy, torch
from functools import partial
from sbi.utils import BoxUniform
from sbi_jeffreys import JNPE, LogRatioNet, build_spline_flow

warnings.simplefilter("ignore")
torch.set_num_threads(1)
prior = BoxUniform(-torch.ones(10), torch.ones(10))

def memory(entry):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[entry].split()[0]) * 1024

def train(theta, x):
    trainer = JNPE(
        prior,
        partial(build_spline_flow, hidden_features=8, num_transforms=2),
        energy_net=partial(LogRatioNet, hidden_features=16),
        show_progress_bars=False,
    )
    trainer.append_simulations(theta, x)
    trainer.train(max_num_epochs=1, training_batch_size=1000)

train(prior.sample((5000,)), torch.randn(5000, 10))
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = memory("VmRSS")
mode = "r" if sys.argv[1] == "on disk" else None
theta, x = (numpy.load(f"{sys.argv[2]}/{n}.npy", mmap_mode=mode) for n in ("theta", "x"))
if sys.argv[1] == "in memory":
    theta, x = torch.from_numpy(theta), torch.from_numpy(x)
train(theta, x)
print("growth:", (memory("VmHWM") - before) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the peak where Linux has it"
)
@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_a_million_simulations_take_three_times_their_size(tmp_path, kept):
    """An epoch on 80 MB; batches of 1,000, with small networks, take little beside it.

    The data count where they are in memory, and pages of files that have been read do.
    """
    theta = 2 * torch.rand(1_000_000, 10) - 1
    save(tmp_path, theta=theta, x=theta + 0.1 * torch.randn_like(theta))
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_A_RUN, kept, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    growth = float(run.stdout.split("growth:")[1])
    assert growth < 240, f"{growth:.0f} MB"


# ---------------------------------------------------------------- other input


def test_truncated_proposals_train_and_others_are_refused():
    trainer = make_trainer()
    flow = quick(trainer)
    posterior = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    with pytest.raises(NotImplementedError, match="RestrictedPrior"):
        trainer.append_simulations(BOX.sample((10,)), torch.zeros(10, 2), posterior)
    accept = get_density_thresholder(posterior, 1e-2, 500)
    proposal = RestrictedPrior(BOX, accept, sample_with="rejection")
    theta = proposal.sample((60,), show_progress_bars=False)
    trainer.append_simulations(theta, simulate(theta), proposal)
    assert quick(trainer, force_first_round_loss=True) is flow


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
    ],
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=f"`{option}`"):
        JNPE(BOX, **{option: value})


def test_an_embedding_with_a_builder_is_refused():
    with pytest.raises(ValueError, match="embedding_net"):
        JNPE(BOX, SMALL, embedding_net=nn.Identity())


def test_an_estimator_that_cannot_be_trained_is_refused_before_training():
    trainer = make_trainer(density_estimator=posterior_nn("mdn"))
    with pytest.raises(TypeError, match="differentiably"):
        trainer.train()


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


def test_a_calibration_kernel_weighs_simulations():
    trainer = make_trainer()
    flow = quick(trainer, calibration_kernel=_positive)
    theta, x, _ = trainer.get_simulations()
    theta, x = theta[trainer.val_indices], x[trainer.val_indices]
    assert 0 < _positive(x).mean() < 1
    loss = (_positive(x) * flow.loss(theta, x)).mean() / _positive(x).mean()
    assert loss.item() == pytest.approx(trainer._best_val_loss, abs=1e-5)


def test_the_size_of_a_calibration_kernel_does_not_matter():
    losses = []
    for size in (1.0, 1e-3, 256.0):
        trainer = make_trainer()
        quick(trainer, calibration_kernel=lambda x, size=size: size * (1 + _positive(x)))
        losses.append(trainer.summary["validation_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] == pytest.approx(losses[2], abs=1e-4)


def test_a_calibration_kernel_of_zeros_is_refused():
    with pytest.raises(ValueError, match=r"`calibration_kernel` .* got 0\.0"):
        make_trainer().train(calibration_kernel=lambda x: torch.zeros(len(x)))


def test_resuming_waits_as_long_as_it_is_told_to():
    trainer = make_trainer()
    quick(trainer, max_num_epochs=2, stop_after_epochs=200)
    assert trainer._training.scheduler.patience == 100
    quick(trainer, max_num_epochs=3, stop_after_epochs=8, resume_training=True)
    assert trainer._training.scheduler.patience == 4


def test_x_with_a_single_axis_is_refused():
    trainer = JNPE(BOX, show_progress_bars=False)
    trainer.append_simulations(BOX.sample((20,)), torch.randn(20))
    with pytest.raises(ValueError, match=r"`x` of shape \(num_simulations, \.\.\.\)"):
        trainer.train()


def _positive(x):
    return (x[:, 0] > 0).float()


def test_a_batch_of_priors_is_not_a_prior():
    """As in sbi's `process_prior`."""
    batch = Beta(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"`prior` .* a batch of 2 .*Independent"):
        JNPE(batch)
    JNPE(Independent(batch, 1))
    JNPE(Beta(torch.ones(1), torch.ones(1)))


def test_a_prior_whose_support_is_not_mapped_trains_and_rejects():
    class Disc(MultivariateNormal):
        support = property(lambda self: constraints.simplex)

        def log_prob(self, value):
            inside = value.square().sum(-1) < 1
            return torch.where(inside, -math.log(math.pi), -torch.inf)

        def sample(self, sample_shape=torch.Size()):  # noqa: B008
            radius, angle = torch.rand(2, *sample_shape)
            angle = 2 * math.pi * angle
            return radius.sqrt().unsqueeze(-1) * torch.stack(
                [angle.cos(), angle.sin()], -1
            )

    prior = Disc(torch.zeros(2), torch.eye(2), validate_args=False)
    trainer = JNPE(prior, SMALL, energy_net=ENERGY, show_progress_bars=False)
    theta = prior.sample((100,))
    trainer._theta_roundwise.append(theta)
    with pytest.warns(UserWarning, match="starts from a Gaussian"):
        flow = trainer._build_estimators(theta, simulate(theta))
    draws = flow.sample((500,), torch.zeros(1, 2))
    assert trainer._trained_energy(draws, torch.zeros(1, 2)).isfinite().all()


def test_training_again_after_a_first_epoch_that_diverged():
    class Net(nn.Module):
        factor = float("nan")

        def forward(self, input, condition):
            return self.factor * input.sum(-1)

    net = Net()
    trainer = make_trainer(energy_net=net)
    with pytest.raises(FloatingPointError, match="step 1 of epoch 1"):
        trainer.train()
    net.factor = 0.0
    quick(trainer)


def test_resuming_and_starting_afresh_exclude_each_other():
    trainer = make_trainer()
    quick(trainer)
    with pytest.raises(ValueError, match="`resume_training`"):
        trainer.train(resume_training=True, retrain_from_scratch=True)


def test_starting_afresh_takes_all_simulations_and_resuming_warns_that_it_does_not():
    trainer = make_trainer()
    quick(trainer)
    theta = BOX.sample((30,))
    trainer.append_simulations(theta, simulate(theta))
    with pytest.warns(UserWarning, match="30 that were appended since have no part"):
        quick(trainer, max_num_epochs=3, resume_training=True)
    assert trainer.build_posterior().num_simulations == 120
    before = trainer.summary["epochs_trained"][-1]
    flow = trainer._neural_net
    quick(trainer, retrain_from_scratch=True)
    assert trainer._neural_net is not flow
    assert trainer.build_posterior().num_simulations == 150
    assert trainer.summary["epochs_trained"][-1] < before


def test_no_simulations_are_refused_when_appended():
    with pytest.raises(ValueError, match="`theta` of at least one simulation"):
        JNPE(BOX).append_simulations(torch.zeros(0, 2), torch.zeros(0, 2))


def test_simulators_may_be_differentiable():
    trainer = JNPE(BOX, SMALL, show_progress_bars=False)
    theta = BOX.sample((60,))
    x = theta * torch.ones(2, requires_grad=True)
    quick(trainer.append_simulations(theta, x))


def test_without_training_there_is_nothing_to_resume():
    with pytest.raises(RuntimeError, match="no training to resume"):
        make_trainer().train(resume_training=True)


@pytest.mark.gpu
@pytest.mark.parametrize("data_device", ["cuda", "cpu"])
def test_trains_on_a_gpu(data_device):
    prior = BoxUniform(-torch.ones(2), torch.ones(2), device="cuda")
    trainer = JNPE(prior, SMALL, device="cuda", show_progress_bars=False)
    theta = prior.sample((200,)).to(data_device)
    trainer.append_simulations(theta, simulate(theta), data_device=data_device)
    flow = quick(trainer)
    assert all(p.is_cuda for p in flow.parameters())
    samples = trainer.build_posterior().sample((5,), x=torch.zeros(1, 2, device="cuda"))
    assert samples.is_cuda
