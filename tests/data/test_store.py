"""Simulations that JNPE is given: what is refused, left out, and kept without a copy."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sbi.utils import BoxUniform, RestrictedPrior, get_density_thresholder
from torch import Tensor
from torch.distributions import MultivariateNormal, Uniform

from sbi_jeffreys import JNPE
from sbi_jeffreys.data import arrays
from sbi_jeffreys.data.batches import StreamedBatches
from tests.small_trainings import (
    BOX,
    make_trainer,
    new_trainer,
    quick,
    same_weights,
    simulate,
)


def test_invalid_simulations_are_left_out_as_in_sbi():
    theta = BOX.sample((100,))
    x = simulate(theta)
    x[:7, 0] = float("nan")
    x[7:9] = float("inf")
    trainer = JNPE(BOX, show_progress_bars=False)
    trainer.append_simulations(theta, x)
    assert len(trainer.get_simulations()[0]) == 91
    keeping = new_trainer()
    with pytest.warns(UserWarning, match="outliers"):
        keeping.append_simulations(theta, x, exclude_invalid_x=False)
    with pytest.raises(ValueError, match=r"default embedding .*`exclude_invalid_x=True`"):
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


ONE = BoxUniform(torch.zeros(1), torch.ones(1))


@pytest.mark.parametrize(
    ("prior", "shape", "expected"),
    [
        (BOX, (60, 1), r"\(num_simulations, 2\)"),
        (BOX, (60, 3), r"\(num_simulations, 2\)"),
        (BOX, (60,), r"\(num_simulations, 2\)"),
        (BOX, (60, 2, 1), r"\(num_simulations, D\)"),
        (ONE, (60, 2), r"\(num_simulations, 1\)"),
        (Uniform(0.0, 1.0), (60, 2), r"\(num_simulations, 1\)"),
        (RestrictedPrior(BOX, lambda t: t[:, 0] > 0), (60, 1), r"\(num_simulations, 2\)"),
    ],
)
def test_parameters_of_another_number_than_the_priors_are_not_stored(
    prior, shape, expected
):
    trainer = new_trainer(prior)
    theta = 0.5 * torch.rand(shape)
    with pytest.raises(ValueError, match=rf"`theta` of shape {expected}"):
        trainer.append_simulations(theta, torch.randn(60, 2))
    assert not trainer.has_simulations
    right = prior.sample((60,))
    trainer.append_simulations(right, torch.randn(60, 2))
    assert len(trainer.get_simulations()[0]) == 60


@pytest.mark.parametrize("prior", [ONE, None])
def test_one_parameter_and_one_entry_of_x_need_no_axis_of_their_own(prior):
    theta = torch.rand(60)
    trainer = new_trainer(prior).append_simulations(theta, theta + 0.1)
    assert [len(part) for part in trainer.get_simulations()] == [60] * 3
    assert trainer.get_simulations()[0].shape == trainer.get_simulations()[1].shape
    quick(trainer)
    samples = trainer.build_posterior().sample((5,), x=torch.tensor([0.4]))
    assert samples.shape == (5, 1)


@pytest.mark.parametrize("shape", [(), (4, 2), (5, 0)])
def test_an_x_that_does_not_match_is_not_stored(shape):
    trainer = new_trainer()
    with pytest.raises(ValueError, match=r"`x` of shape \(5, \.\.\.\)"):
        trainer.append_simulations(BOX.sample((5,)), torch.zeros(shape))
    assert not trainer.has_simulations


def test_parameters_that_are_all_nan_are_refused():
    with pytest.raises(ValueError, match="finite `theta`, but 5 of 5"):
        JNPE().append_simulations(torch.full((5,), torch.nan), torch.zeros(5, 1))


class Wrong(MultivariateNormal):
    """Its log density has an axis too many."""

    def log_prob(self, value):
        return super().log_prob(value).unsqueeze(-1).expand(*value.shape)


def test_a_prior_or_proposal_with_log_densities_of_another_shape_is_refused():
    wrong = Wrong(torch.zeros(2), torch.eye(2))
    theta = wrong.sample((60,))
    with pytest.raises(ValueError, match=r"`prior.log_prob` .* \(200,\), .* \(200, 2\)"):
        new_trainer(wrong)
    trainer = new_trainer(MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(
        ValueError, match=r"`proposal.log_prob\(theta\)` of shape \(60,\)"
    ):
        trainer.append_simulations(theta, theta, proposal=wrong)
    assert not trainer.has_simulations


def test_only_invalid_simulations_are_refused():
    trainer = new_trainer()
    with pytest.raises(ValueError, match=r"`x` with at least one .*`exclude_invalid_x="):
        trainer.append_simulations(BOX.sample((5,)), torch.full((5, 2), torch.nan))
    assert not trainer.has_simulations


def test_what_is_said_of_outliers_is_true_here():
    """sbi's text names `z_score_x`, which is no argument of JNPE."""
    x = torch.randn(100, 2)
    x[0, 0] = 1e7
    with pytest.warns(UserWarning, match="extreme outliers") as found:
        new_trainer().append_simulations(BOX.sample((100,)), x)
    assert "z_score" not in str(found[0].message)
    assert found[0].filename == __file__


def test_no_simulations_are_refused_when_appended():
    with pytest.raises(ValueError, match=r"`theta` of shape .* at least one"):
        JNPE(BOX).append_simulations(torch.zeros(0, 2), torch.zeros(0, 2))


def test_simulators_may_be_differentiable():
    trainer = new_trainer()
    theta = BOX.sample((60,))
    x = theta * torch.ones(2, requires_grad=True)
    flow = quick(trainer.append_simulations(theta, x))
    assert not trainer.get_simulations()[1].requires_grad
    assert flow.log_prob(theta, x.detach()).isfinite().all()


def test_simulations_of_another_shape_than_before_are_refused():
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"`x` of shape \('N', 2\), .* got \(10, 3\)"):
        trainer.append_simulations(BOX.sample((10,)), torch.randn(10, 3))
    assert len(trainer.get_simulations()[0]) == 120


def test_parameters_of_another_number_than_before_are_refused():
    trainer = new_trainer(None).append_simulations(torch.randn(20, 2), torch.randn(20, 2))
    with pytest.raises(ValueError, match=r"`theta` of shape \('N', 2\), .* \(10, 3\)"):
        trainer.append_simulations(torch.randn(10, 3), torch.randn(10, 2))
    assert len(trainer.get_simulations()[0]) == 20


def test_truncated_proposals_train():
    trainer = make_trainer()
    flow = quick(trainer)
    posterior = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    accept = get_density_thresholder(posterior, 1e-2, 500)
    proposal = RestrictedPrior(BOX, accept, sample_with="rejection")
    theta = proposal.sample((60,), show_progress_bars=False)
    trainer.append_simulations(theta, simulate(theta), proposal)
    assert quick(trainer, force_first_round_loss=True) is flow


def save(folder, **tensors):
    """Return memory maps, which can't be written, of tensors saved to files."""
    for name, values in tensors.items():
        np.save(folder / f"{name}.npy", values.numpy())
    return [np.load(folder / f"{name}.npy", mmap_mode="r") for name in tensors]


@pytest.mark.parametrize("num_appended", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_data_on_disk_train_as_data_in_memory_do(tmp_path, monkeypatch, num_appended):
    trainers, flows, streamed = [], [], []
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
        flows.append(quick(trainer, max_num_epochs=3))
        trainers.append(trainer)
        assert bool(streamed) == on_disk
    in_memory, mapped = trainers
    assert same_weights(*flows)
    for got, want in zip(mapped.get_simulations(), (theta, x), strict=False):
        assert torch.equal(got, want)

    want = quick(in_memory, max_num_epochs=5, resume_training=True)
    with pytest.warns(UserWarning, match="pickled"):
        mapped = pickle.loads(pickle.dumps(mapped))
    assert same_weights(quick(mapped, max_num_epochs=5, resume_training=True), want)


def mapped_doubles(values, folder):
    np.save(folder / "values.npy", values.double().numpy())
    return np.load(folder / "values.npy", mmap_mode="r")


@pytest.mark.parametrize("name", ["theta", "x"])
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda values, _: values > 0, "of real numbers, got torch.bool"),
        (lambda values, _: values + 1j, "of real numbers, got torch.complex64"),
        (lambda values, _: values.numpy().astype(object), "of real numbers, got object"),
        (lambda values, _: values.tolist(), "got builtins.list. `numpy.asarray` makes"),
        (lambda values, _: pd.DataFrame(values), "got pandas.*. `numpy.asarray` makes"),
        (mapped_doubles, "of dtype float32, got float64"),
    ],
)
def test_values_of_other_types_are_named_and_not_stored(name, convert, message, tmp_path):
    given = {"theta": BOX.sample((20,)), "x": torch.randn(20, 2)}
    values = given[name]
    trainer = new_trainer()
    with pytest.raises(TypeError, match=rf"Expected .*`{name}` .*{message}"):
        trainer.append_simulations(**given | {name: convert(values, tmp_path)})
    assert not trainer.has_simulations
    trainer.append_simulations(**given)


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, pd.DataFrame])
def test_numpy_makes_arrays_of_lists_and_data_frames(convert):
    theta, x = BOX.sample((20,)), torch.randn(20, 2)
    trainer = new_trainer().append_simulations(
        np.asarray(convert(theta)), np.asarray(convert(x))
    )
    for kept, values in zip(trainer.get_simulations(), (theta, x), strict=False):
        assert torch.equal(kept, values)


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
    monkeypatch.setattr(arrays, "MAX_ROWS", 8)
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize("as_array", [False, True])
def test_other_real_numbers_are_rounded(dtype, as_array):
    theta, x = torch.rand(20, 2).to(dtype), (9 * torch.randn(20, 2)).to(dtype)
    given = (theta.numpy(), x.numpy()) if as_array else (theta, x)
    trainer = new_trainer(None).append_simulations(*given)
    for kept, values in zip(trainer.get_simulations(), (theta, x), strict=False):
        assert torch.equal(kept, values.float())


def test_numbers_beyond_single_precision_count_as_infinite():
    theta = BOX.sample((20,)).double()
    trainer = new_trainer()
    with pytest.raises(ValueError, match="finite `theta`, but 1 of 20"):
        trainer.append_simulations(theta.index_fill(0, torch.tensor(3), 1e300), theta)
    trainer.append_simulations(theta, theta.index_fill(0, torch.tensor(3), 1e300))
    assert len(trainer.get_simulations()[0]) == 19


def test_the_support_is_that_of_the_given_precision():
    """0.3 is larger in single precision."""
    high = torch.tensor([0.3], dtype=torch.float64)
    prior = BoxUniform(torch.zeros_like(high), high)
    theta = torch.linspace(0, 1, 100, dtype=torch.float64).unsqueeze(1) * high
    assert theta.float().double().max() > high
    assert new_trainer(prior).append_simulations(theta, theta).has_simulations


def test_simulations_are_kept_on_one_device():
    theta = BOX.sample((20,))
    trainer = new_trainer().append_simulations(theta, simulate(theta))
    with pytest.raises(ValueError, match="to be 'cpu', where the simulations"):
        trainer.append_simulations(theta, simulate(theta), data_device="cuda")
    trainer.append_simulations(theta.numpy(), simulate(theta).numpy(), data_device="cpu")
    assert len(trainer.get_simulations()[0]) == 40


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
        pool=False,
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


@pytest.mark.very_slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the peak where Linux has it"
)
@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_memory_grows_by_the_size_of_the_simulations(tmp_path, kept):
    """Epochs on 16 MB and on 80 MB, without the pool, whose memory does not grow.

    The data count where they are in memory, and pages of files that have been read do.
    """
    growth = []
    for num in (200_000, 1_000_000):
        theta = 2 * torch.rand(num, 10) - 1
        save(tmp_path, theta=theta, x=theta + 0.1 * torch.randn_like(theta))
        run = subprocess.run(
            [sys.executable, "-c", MEMORY_OF_A_RUN, kept, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        growth.append(float(run.stdout.split("growth:")[1]))
    assert growth[1] - growth[0] < 1.5 * 64, f"{growth} MB"
