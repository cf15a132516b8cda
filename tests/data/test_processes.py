"""Two processes that train together, as `torchrun` starts them, against one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sbi_jeffreys.data import processes as distributed
from sbi_jeffreys.pool.emulation import EmulatedBatches
from sbi_jeffreys.pool.exponential_family import TOLERANCE
from tests.data import several_processes

pytestmark = [pytest.mark.full_fits, pytest.mark.slow]

RTOL, ATOL = 1e-4, 1e-5  # rounding errors differ, and grow with every step


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc_per_node", "2"),
            *("-m", "tests.data.several_processes", str(folder)),
        ],
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_two_processes_train_the_same_models(results):
    first, second = results
    torch.testing.assert_close(first["flow"], second["flow"], rtol=0, atol=0)
    torch.testing.assert_close(first["energy"], second["energy"], rtol=0, atol=0)
    torch.testing.assert_close(first["pool"], second["pool"], rtol=0, atol=0)
    assert first["summary"] == second["summary"]


def test_two_processes_give_the_result_of_one(results, monkeypatch):
    # These restore afterwards what the training replaces.
    monkeypatch.setattr(torch, "randn_like", torch.randn_like)
    steps = several_processes.folds.MAX_STEPS
    monkeypatch.setattr(several_processes.folds, "MAX_STEPS", steps)
    monkeypatch.setattr(EmulatedBatches, "draw", EmulatedBatches.draw)
    alone = several_processes.result(several_processes.train(rank=0))
    for model in ("flow", "energy"):
        for name, want in alone[model].items():
            # Adam enlarges rounding errors of single weights with small gradients.
            want, got = want.double(), results[0][model][name].double()
            assert (got - want).norm() <= RTOL * want.norm() + ATOL, name
    # A fit is determined by its loss up to TOLERANCE, about half of f's squared error.
    bound = (2 * TOLERANCE) ** 0.5
    torch.testing.assert_close(results[0]["pool"], alone["pool"], rtol=0, atol=bound)
    for name, values in alone["summary"].items():
        got = torch.tensor(results[0]["summary"][name], dtype=torch.float64)
        want = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=RTOL, atol=ATOL)


def test_batches_that_can_not_be_shared_are_refused(results):
    for result in results:
        assert "`training_batch_size` to be a multiple" in result["refusals"]["batch"]
        assert "the same simulations in all" in result["refusals"]["simulations"]


def test_one_process_is_a_group_of_one():
    values = torch.arange(3.0)
    assert (distributed.num_processes(), distributed.process_rank()) == (1, 0)
    assert distributed.mean_over_processes(values) is values
