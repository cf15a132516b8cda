"""Simulators that raise, hang, return NaN, take arrays or one row at a time."""

import time

import numpy as np
import pytest
import torch
from joblib import parallel_config

from sbi_jeffreys.rounds.simulator import SafeSimulator, Status

THETA = np.arange(12, dtype=np.float32).reshape(6, 2)


def plain(theta):
    return theta * 2


def raises_at_four(theta):
    if (theta == 4).any():
        raise ArithmeticError("four")
    return theta * 2


def hangs_at_four(theta):
    if (theta == 4).any():
        time.sleep(60)
    return theta * 2


def noisy(theta):
    return theta + torch.randn_like(theta)


def run(simulator, theta=THETA, **options):
    defaults = {
        "is_batched": True,
        "takes_numpy": False,
        "batch_size": 2,
        "num_workers": 1,
        "timeout": None,
    }
    safe = SafeSimulator(simulator, **(defaults | options))
    batches = {batch.number: batch for batch in safe.batches(theta, 0, 1, set())}
    return [batches[number] for number in sorted(batches)]


def joined(batches, name):
    return np.concatenate([getattr(batch, name) for batch in batches])


@pytest.mark.parametrize("takes_numpy", [False, True])
def test_batches_of_tensors_or_arrays(takes_numpy):
    kind = np.ndarray if takes_numpy else torch.Tensor

    def typed(theta):
        assert isinstance(theta, kind)
        assert theta.shape == (2, 2)
        return theta * 2

    batches = run(typed, takes_numpy=takes_numpy)
    assert np.array_equal(joined(batches, "x"), 2 * THETA)
    assert not joined(batches, "status").any()


def test_one_at_a_time_with_x_of_any_shape():
    def image(theta):
        assert theta.shape == (2,)
        return np.outer(theta, theta)

    batches = run(image, is_batched=False, takes_numpy=True)
    assert joined(batches, "x").shape == (6, 2, 2)


@pytest.mark.parametrize("is_batched", [True, False])
def test_an_error_costs_one_simulation(is_batched):
    batches = run(raises_at_four, is_batched=is_batched)
    x, status = joined(batches, "x"), joined(batches, "status")
    assert status.tolist() == [0, 0, Status.RAISED, 0, 0, 0]
    assert np.isnan(x[2]).all()
    assert np.array_equal(np.delete(x, 2, 0), 2 * np.delete(THETA, 2, 0))
    assert "four" in batches[1].error
    assert np.array_equal(joined(batches, "theta"), THETA)


def test_what_hangs_is_stopped():
    started = time.perf_counter()
    batches = run(hangs_at_four, timeout=2.0, is_batched=False)
    assert time.perf_counter() - started < 50
    status = joined(batches, "status")
    assert status.tolist() == [0, 0, Status.TIMED_OUT, 0, 0, 0]
    assert np.array_equal(joined(batches, "x")[3:], 2 * THETA[3:])


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_time_limit_of_the_simulator_itself_is_an_error(timeout):
    def gives_up(theta):
        raise TimeoutError("no answer from the licence server")

    (batch,) = run(gives_up, THETA[:1], timeout=timeout)
    assert batch.status.tolist() == [Status.RAISED]
    assert "licence server" in batch.error


def test_nan_is_told_from_errors():
    def at_four(theta):
        return torch.where(theta == 4, torch.nan, theta)

    assert joined(run(at_four), "status").tolist() == [0, 0, Status.NOT_FINITE, 0, 0, 0]


@pytest.mark.parametrize(
    "simulator",
    [
        lambda theta: theta[:-1],
        lambda theta: torch.cat([theta, theta]),
        lambda theta: torch.tensor(1.0),
    ],
)
def test_a_wrong_number_of_rows_is_an_error(simulator):
    batches = run(simulator)
    assert (joined(batches, "status") == Status.RAISED).all()
    assert "x of shape" in batches[0].error


def test_numbers_are_rows_of_one_entry():
    x = joined(run(lambda theta: theta.sum(-1)), "x")
    assert np.array_equal(x, THETA.sum(-1, keepdims=True))
    alone = joined(run(lambda theta: float(theta.sum()), is_batched=False), "x")
    assert np.array_equal(alone, x)


def test_where_all_fail_x_is_empty():
    def fails(theta):
        raise RuntimeError("never")

    batches = run(fails)
    assert (joined(batches, "status") == Status.RAISED).all()
    assert joined(batches, "x").shape == (6, 0)


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"timeout": 30.0}])
def test_random_numbers_depend_on_the_batch_alone(options):
    alone = run(noisy)
    others = run(noisy, **options)
    assert np.array_equal(joined(alone, "x"), joined(others, "x"))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = run(noisy)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(joined(alone, "x"), joined(again, "x"))
    noise = joined(alone, "x") - THETA
    assert len(np.unique(noise)) == noise.size


def test_known_batches_are_left_out():
    safe = SafeSimulator(plain, True, False, 2, 1, None)
    assert [b.number for b in safe.batches(THETA, 0, 0, {0, 2})] == [1]


@pytest.mark.slow
def test_a_cluster_of_dask():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), parallel_config(backend="dask"):
        batches = run(noisy, num_workers=-1)
    assert np.array_equal(joined(batches, "x"), joined(run(noisy), "x"))
