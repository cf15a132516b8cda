"""A run of rounds: its record, its folder, and how it goes on after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform, process_prior
from torch import nn

from sbi_jeffreys import plots, run_rounds
from sbi_jeffreys.rounds import run as run_module
from tests.conftest import fit_in_few_steps
from tests.small_trainings import BOX, make_trainer, new_trainer, simulate

X_O = torch.tensor([0.4, -0.4])
WIDER = BoxUniform(-4 * torch.ones(2), 4 * torch.ones(2))
QUICK = {"max_num_epochs": 2, "training_batch_size": 50}
pytestmark = pytest.mark.filterwarnings("ignore:Training stopped at")


def rounds(trainer=None, simulator=simulate, x_o=X_O, num=90, **options):
    options = {"num_rounds": 3, "batch_size": 10, "training": QUICK, **options}
    return run_rounds(
        trainer or new_trainer(), simulator, x_o, num, show_progress_bars=False, **options
    )


def simulations(result):
    return result.trainer.get_simulations()[:2]


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as monkeypatch:
        fit_in_few_steps(monkeypatch)
        with pytest.warns(UserWarning, match="max_num_epochs"):
            return rounds()


def test_a_run_has_a_posterior_and_a_record_of_each_round(result):
    theta, x = simulations(result)
    assert theta.shape == x.shape == (90, 2)
    assert [each.number for each in result.rounds] == [1, 2, 3]
    assert result.table.simulations.tolist() == [30, 60, 90]
    samples = result.posterior.sample((100,), show_progress_bars=False)
    assert BOX.support.check(samples).all()
    assert result.posterior.default_x.shape == (1, 2)
    assert result.num_by_status["VALID"] == 90
    assert "All simulations were used." in str(result)
    base = result.trainer._fit.networks.energy.base
    assert base.shares.tolist() == pytest.approx([1 / 3] * 3)


def test_the_record_can_be_drawn_and_exported(result):
    assert len(plots.plot_rounds(result).axes) == 4
    assert len(plots.plot_narrowing(result, ["a", "b"]).axes) == 2
    with pytest.raises(ValueError, match="Expected 2 `parameter_names`, got 1"):
        plots.plot_narrowing(result, ["a"])
    data = result.to_inference_data(num_samples=100, show_progress_bars=False)
    assert data["posterior"]["theta"].shape == (4, 25, 2)
    assert data["constant_data"]["round_kl"].shape == (3,)
    assert data["constant_data"]["round_mean"].shape == (3, 2)


def test_the_seed_determines_a_run(result):
    trainer = new_trainer()
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = rounds(trainer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(simulations(again)[0], simulations(result)[0])
    assert again.rounds[-1].mean == result.rounds[-1].mean
    other = rounds(seed=1)
    assert not torch.equal(simulations(other)[0], simulations(result)[0])


def test_a_folder_has_everything_and_a_run_goes_on_from_it(tmp_path, result):
    """After the loss of a batch of the last round only that batch is simulated."""
    path = tmp_path / "run"
    first = rounds(path=path)
    assert torch.equal(simulations(first)[1], simulations(result)[1])
    with np.load(path / "round_01" / "batch_00000.npz") as batch:
        assert np.array_equal(batch["x"], simulations(result)[1][30:40].numpy())
    (path / "round_02" / "batch_00001.npz").unlink()
    (path / "round_02" / "record.json").unlink()
    calls = []

    def counted(theta):
        calls.append(len(theta))
        return simulate(theta)

    again = rounds(simulator=counted, path=path)
    assert calls == [10]
    assert torch.equal(simulations(again)[1], simulations(result)[1])
    assert again.rounds[-1].mean == result.rounds[-1].mean


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run on disk."""
    path = tmp_path_factory.mktemp("rounds") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        fit_in_few_steps(monkeypatch)
        with pytest.warns(UserWarning, match="max_num_epochs"):
            rounds(path=path)
    return path


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 3}, "seed"),
        ({"num": 120}, "round sizes"),
        ({"x_o": X_O + 1}, "x_o"),
        ({"training": {"max_num_epochs": 3}}, "training"),
        ({"trainer": new_trainer(WIDER)}, "prior"),
    ],
)
def test_a_folder_of_another_run_is_refused(changed, name, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    with pytest.raises(ValueError, match=f"`{name}` is"):
        rounds(path=tmp_path / "run", **changed)


def test_a_mistake_before_any_training_can_be_corrected(tmp_path):
    """A wrong x_o is noticed after the first batch, which stays."""
    with pytest.raises(ValueError, match="`x_o` of the shape of a simulation"):
        rounds(path=tmp_path, x_o=torch.zeros(3))
    assert len(list(tmp_path.glob("round_00/batch_*.npz"))) == 1
    assert len(simulations(rounds(path=tmp_path))[0]) == 90


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="has other files"):
        rounds(path=tmp_path)


def test_simulations_that_fail_are_counted_and_their_parameters_are_kept(tmp_path):
    def fragile(theta):
        if (theta[:, 0] > 0.5).any():
            raise OverflowError("too large")
        return torch.where(theta[:, 1:] > 0.7, torch.nan, simulate(theta))

    result = rounds(simulator=fragile, path=tmp_path / "run")
    counts = result.num_by_status
    assert counts["RAISED"] > 0
    assert counts["NOT_FINITE"] > 0
    assert sum(counts.values()) == 90
    assert len(simulations(result)[0]) == counts["VALID"]
    stored = [np.load(f)["theta"] for f in sorted(tmp_path.glob("run/*/batch_*.npz"))]
    assert sum(map(len, stored)) == 90
    assert "not valid" in str(result)


def test_a_round_without_a_valid_simulation_is_an_error(tmp_path):
    def broken(theta):
        raise OSError("no licence")

    with pytest.raises(RuntimeError, match=r"Too few .* round 1 are valid.*no licence"):
        rounds(simulator=broken, path=tmp_path / "run")
    assert len(list(tmp_path.glob("run/round_00/batch_*.npz"))) == 3


def test_fewer_than_ten_valid_simulations_are_an_error_and_stay_on_disk(tmp_path):
    calls = iter(range(1000))

    def nearly_broken(theta):
        if next(calls) >= 9:
            raise OSError("no licence")
        return simulate(theta)

    with pytest.raises(
        RuntimeError, match=r"round 1 are valid, 9 of 30.*first error: .*no licence"
    ):
        rounds(simulator=nearly_broken, batch_size=1, path=tmp_path / "run")
    files = sorted(tmp_path.glob("run/round_00/batch_*.npz"))
    stored = [np.load(file)["x"] for file in files]
    assert len(stored) == 30
    assert sum(bool(x.size) and np.isfinite(x).all() for x in stored) == 9


def test_rounds_end_where_nothing_changes_any_more(monkeypatch):
    monkeypatch.setattr(run_module, "MIN_KL", 1e9)
    monkeypatch.setattr(run_module, "MIN_RELATIVE_ESS", 0.0)
    monkeypatch.setattr(run_module, "MAX_PARETO_K", 1e9)
    result = rounds()
    assert len(result.rounds) == 1
    assert result.reason.startswith("The last round changed the proposal by")


def test_several_observations_of_the_same_parameters():
    x_o = torch.tensor([[0.4, -0.4], [0.5, -0.3], [0.3, -0.2]])
    result = rounds(x_o=x_o, num_rounds=2, num=80)
    assert result.x_o.shape == (3, 2)
    samples = result.posterior.sample((50,), show_progress_bars=False)
    assert samples.shape == (50, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 5}, "`num_simulations` to be a whole number, at least 20, got 5"),
        ({"num_rounds": 0}, "`num_rounds` to be a whole number, at least 1, got 0"),
        ({"num_rounds": 9}, "at least 20 simulations"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"timeout": 0.0}, "`timeout` to be positive"),
        ({"seed": -1}, "`seed` to be a whole number, at least 0, got -1"),
        ({"num": 100.0}, "`num_simulations` to be a whole number"),
        ({"num_workers": 0}, "`num_workers` to be positive"),
        ({"training": {"max_epochs": 3}}, "`training` to have arguments of `train`"),
        ({"training": {"learning_rate": -1.0}}, "learning_rate"),
        ({"x_o": torch.tensor([torch.nan, 0.0])}, "finite `x_o`"),
        ({"x_o": torch.zeros(3)}, r"`x_o` of the shape of a simulation, \(2,\)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rounds(**options)


def test_a_trainer_with_simulations_or_without_a_prior_is_refused():
    with pytest.raises(ValueError, match="has simulations"):
        rounds(make_trainer())
    with pytest.raises(ValueError, match="with a prior"):
        rounds(new_trainer(None))


def test_a_prior_without_a_density_that_can_be_mixed_is_refused():
    class Uniform:
        def sample(self, shape):
            return 2 * np.random.rand(*shape, 2) - 1  # noqa: NPY002

        def log_prob(self, theta):
            return np.where((np.abs(theta) < 1).all(-1), -np.log(4.0), -np.inf)

    prior, _, _ = process_prior(Uniform())
    with pytest.raises(ValueError, match="Expected a `prior` whose log density"):
        rounds(new_trainer(prior))


def test_the_noise_of_simulations_is_not_that_of_parameters():
    """Correlations of 30 pairs are below 0.6 with a probability above 0.999."""
    noise = {}

    def uniform_noise(theta):
        x = torch.rand_like(theta)
        noise.update(zip(map(tuple, theta.tolist()), x.tolist(), strict=True))
        return theta + x

    result = rounds(simulator=uniform_noise)
    theta = simulations(result)[0]
    errors = torch.tensor([noise[tuple(row)] for row in theta.tolist()])
    for part in (theta[:30], theta):
        pairs = torch.cat([part, errors[: len(part)]], 1)
        assert torch.corrcoef(pairs.T)[:2, 2:].abs().max() < 0.6
    assert len(errors.flatten().unique()) == errors.numel()


def test_an_embedding_that_learns():
    trainer = new_trainer(density_estimator="maf", embedding_net=nn.Linear(2, 3))
    result = rounds(trainer, num_rounds=2, num=60)
    assert len(result.rounds) == 2


def test_a_batch_of_another_shape_is_counted_as_failed():
    calls = []

    def growing(theta):
        calls.append(len(theta))
        x = simulate(theta)
        return torch.cat([x, x], 1) if len(calls) == 2 else x

    result = rounds(simulator=growing)
    assert result.num_by_status["RAISED"] == 10
    assert len(simulations(result)[0]) == 80


SCRIPT = """
import sys, time, warnings
import torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
from sbi_jeffreys import run_rounds
from sbi_jeffreys.pool import exponential_family
from sbi_jeffreys.pool.synthetic_likelihood import folds
from tests.small_trainings import new_trainer, simulate

exponential_family.MAX_ITERATIONS = folds.MAX_STEPS = 3

def slow(theta):
    time.sleep(0.1)
    return simulate(theta)

result = run_rounds(
    new_trainer(), slow, torch.tensor([0.4, -0.4]), 90, num_rounds=3, batch_size=10,
    training={"max_num_epochs": 2, "training_batch_size": 50}, path=sys.argv[1],
    show_progress_bars=False,
)
torch.save(result.trainer.get_simulations()[:2], sys.argv[2])
"""


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_has_the_same_simulations(tmp_path, result):
    """Killed when the folder has 2, 6 and 11 files of simulations, of 12."""
    command = [sys.executable, "-c", SCRIPT, tmp_path / "run", tmp_path / "result.pt"]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for files in (2, 6, 11):
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None:
            if len(list(tmp_path.glob("run/**/*.npz"))) >= files:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.02)
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True)
    theta, x = torch.load(tmp_path / "result.pt")
    assert torch.equal(theta, simulations(result)[0])
    assert torch.equal(x, simulations(result)[1])
