"""Streamed batches are the sliced ones, and leave no thread behind."""

import gc
import threading

import pytest
import torch

from sbi_jeffreys.data.arrays import ConcatenatedRows
from sbi_jeffreys.data.batches import LoadedBatches, SlicedBatches, StreamedBatches
from sbi_jeffreys.data.store import SimulationStore


def kernel(x):
    return x[:, 0]


def make(kind, device="cpu", num=50, drop_last=False, parts=(60,), theta=None):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 5, generator=generator)
    return kind(
        ConcatenatedRows(rows[:, :2].split(parts)) if theta is None else theta,
        ConcatenatedRows(rows[:, 2:].split(parts)),
        torch.arange(60)[:num],
        8,
        drop_last,
        kernel,
        device,
    )


def assert_same(some, others):
    some, others = list(some), list(others)
    assert len(some) == len(others)
    for batch, other in zip(some, others, strict=True):
        for got, want in zip(batch, other, strict=True):
            assert torch.equal(got, want.to(got.device))


def assert_delivered_alike(batches, expected):
    for epoch in range(2):
        torch.manual_seed(epoch)
        want = list(expected.shuffled(0))
        state = torch.get_rng_state()
        torch.manual_seed(epoch)
        got = []
        for batch in batches.shuffled(0):
            torch.rand(3)  # as a training step does, at the same time
            got.append(batch)
        assert_same(got, want)
        torch.manual_seed(epoch)
        list(batches.shuffled(0))
        assert torch.equal(torch.get_rng_state(), state)
    assert_same(batches.ordered(), expected.ordered())


@pytest.fixture(autouse=True)
def _no_thread_stays():
    before = threading.active_count()
    yield
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num", [5, 8, 16, 50])
@pytest.mark.parametrize("parts", [(60,), (7, 33, 20)])
def test_streamed_batches_are_the_sliced_ones(num, drop_last, parts):
    streamed = make(StreamedBatches, num=num, drop_last=drop_last, parts=parts)
    expected = make(SlicedBatches, num=num, drop_last=drop_last)
    assert len(streamed) == len(expected)
    assert_delivered_alike(streamed, expected)


@pytest.mark.gpu
def test_streamed_batches_on_a_gpu_are_the_sliced_ones():
    streamed = make(StreamedBatches, device="cuda")
    assert_delivered_alike(streamed, make(SlicedBatches))
    assert all(batch.x.is_cuda and batch.weights.is_cuda for batch in streamed.ordered())


@pytest.mark.gpu
def test_a_batch_in_use_on_a_gpu_is_not_overwritten():
    streamed = make(StreamedBatches, device="cuda")
    sums = []
    for batch in streamed.ordered():
        torch.cuda._sleep(10_000_000)  # the step is late; the next batches are not
        sums.append(batch.x.sum())
    expected = [batch.x.sum() for batch in make(SlicedBatches).ordered()]
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack(expected))


def test_batches_are_gathered_ahead_but_not_all_at_once():
    gathered = []

    class Watched(ConcatenatedRows):
        def __getitem__(self, indices):
            gathered.append(threading.current_thread())
            return super().__getitem__(indices)

    streamed = make(StreamedBatches, theta=Watched([torch.zeros(60, 2)]))
    batches = streamed.shuffled(0)
    assert not gathered
    next(batches)
    assert len(gathered) <= 3
    batches.close()
    assert len(gathered) <= 3
    assert threading.main_thread() not in gathered


def test_an_error_of_the_thread_reaches_the_caller():
    streamed = make(StreamedBatches, theta=torch.zeros(10, 2))  # fewer than the indices
    with pytest.raises(IndexError):
        list(streamed.ordered())


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_an_error_of_the_step_ends_the_thread(error):
    def epoch():
        for _ in make(StreamedBatches).shuffled(0):
            raise error

    with pytest.raises(error):
        epoch()


def make_store(theta, device="cpu"):
    store = SimulationStore(device)
    store.theta, store.x = list(theta), [part + 1 for part in theta]
    return store


@pytest.mark.parametrize("on_disk", [True, False])
def test_only_what_is_far_from_the_training_device_is_streamed(on_disk):
    rows = torch.randn(20, 2)
    indices = torch.randperm(20)[:15]
    store = make_store(rows.split((8, 12)))
    store.on_disk = on_disk
    batches = store.batches(indices, 4, kernel, None)
    assert type(batches) is (StreamedBatches if on_disk else SlicedBatches)
    assert torch.equal(torch.cat([b.theta for b in batches.ordered()]), rows[indices])
    assert torch.equal(torch.cat([b.x for b in batches.ordered()]), rows[indices] + 1)


def test_a_collation_of_the_users_own_delivers_the_batches():
    rows, indices = torch.randn(60, 2), torch.arange(30)
    store = make_store([rows])

    def collate(triples):
        return [torch.stack(column) for column in zip(*triples, strict=True)]

    sliced = store.batches(indices, 10, kernel, {"num_workers": 0})
    loaded = store.batches(indices, 10, kernel, {"collate_fn": collate})
    assert isinstance(sliced, SlicedBatches)
    assert isinstance(loaded, LoadedBatches)
    for batches in (sliced, loaded):
        assert len(batches) == 3
        seen = torch.cat([batch.theta for batch in batches.shuffled(0)])
        assert set(seen.flatten().tolist()) == set(rows[:30].flatten().tolist())


def test_arguments_that_a_data_loader_does_not_know_are_refused():
    store = make_store([torch.randn(20, 2)])
    with pytest.raises(TypeError, match="no_such"):
        store.batches(torch.arange(20), 10, kernel, {"no_such": 1})


@pytest.mark.gpu
def test_data_in_memory_are_streamed_to_a_gpu():
    store = make_store([torch.zeros(8, 2)], "cuda")
    assert isinstance(store.batches(torch.arange(8), 4, kernel, None), StreamedBatches)
