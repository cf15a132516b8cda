"""Simulations in memory and on disk, looked at in chunks, gathered by row."""

import warnings

import numpy as np
import pytest
import torch

from sbi_jeffreys.data import arrays as data
from sbi_jeffreys.data.arrays import (
    ConcatenatedRows,
    as_tensor,
    evenly_spaced,
    is_finite,
    rows_at_once,
)


def test_arrays_share_their_memory():
    array = np.zeros((5, 2), dtype=np.float32)
    tensor = as_tensor("x", array)
    array[3, 1] = 7
    assert tensor[3, 1] == 7
    assert as_tensor("x", tensor).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">f8", "i2", "u4", "i8"])
def test_other_numbers_keep_their_values(dtype):
    array = np.arange(6).reshape(3, 2).astype(dtype)
    assert as_tensor("x", array).float().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_files_of_other_numbers_are_not_read_into_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((10, 2)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with pytest.raises(TypeError, match=r"memory-mapped `x` .* float64, .*astype"):
        as_tensor("x", mapped)
    assert as_tensor("x", mapped.astype("float32")).shape == (10, 2)


@pytest.mark.parametrize("dtype", [np.float32, int])
def test_what_an_array_masks_is_nan(dtype):
    array = np.ma.MaskedArray(np.ones((3, 2), dtype=dtype), mask=False)
    array[1, 0] = np.ma.masked
    assert as_tensor("x", array).isnan().nonzero().tolist() == [[1, 0]]
    assert np.asarray(array)[1, 0] == 1


def test_arrays_may_be_reversed():
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert as_tensor("x", array[::-1]).tolist() == [[4, 5], [2, 3], [0, 1]]


def test_gradients_of_a_simulator_are_left_behind():
    x = torch.ones(3, 2, requires_grad=True) * 2
    assert not as_tensor("x", x).requires_grad


def test_files_that_cannot_be_written_are_mapped_without_a_warning(tmp_path):
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.save(tmp_path / "x.npy", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor("x", np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert torch.equal(tensor, torch.from_numpy(rows))


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (np.zeros((3, 2), dtype=bool), "bool"),
        (np.zeros((3, 2), dtype=complex), "complex128"),
        (np.zeros((3, 2), dtype=object), "object"),
        (torch.zeros(3, 2, dtype=torch.bool), "torch.bool"),
        (torch.zeros(3, 2, dtype=torch.complex64), "torch.complex64"),
        ([[1.0]], "builtins.list"),
        (None, "builtins.NoneType"),
    ],
)
def test_other_types_are_named_and_refused(values, got):
    with pytest.raises(TypeError, match=f"Expected `x` .* got {got}"):
        as_tensor("x", values)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((10,), 100_000), ((10, 10), 100_000), ((2, 64, 64), 4096), ((1, 10**6), 1000)],
)
def test_long_rows_are_looked_at_fewer_at_a_time(shape, rows):
    assert rows_at_once(torch.zeros(1).expand(shape)) == rows


def test_many_rows_are_thinned_evenly_without_a_copy(monkeypatch):
    monkeypatch.setattr(data, "MAX_ROWS", 4)
    values = torch.arange(10.0)
    (some,) = evenly_spaced(values)
    assert some.tolist() == [0, 3, 6, 9]
    assert some.data_ptr() == values.data_ptr()
    assert evenly_spaced(values[:4])[0].tolist() == [0, 1, 2, 3]
    assert len(evenly_spaced(values[:0])[0]) == 0
    few, many = evenly_spaced(values[:2], values)  # 12 in all: every third of each
    assert few.tolist() == [0]
    assert many.tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [0, 5, 9])
def test_a_number_that_is_not_finite_is_found_in_every_chunk(monkeypatch, bad, row):
    monkeypatch.setattr(data, "MAX_ROWS", 4)
    values = torch.zeros(10, 3)
    assert is_finite(values)
    values[row, 2] = bad
    assert not is_finite(values)


@pytest.mark.parametrize("lengths", [(10,), (3, 7), (1, 4, 5)])
def test_stacked_rows_are_those_of_the_concatenation(lengths):
    values = torch.randn(10, 2, 3)
    stacked = ConcatenatedRows(values.split(lengths))
    for indices in (torch.randperm(10), torch.tensor([9, 0, 9]), torch.tensor([2])):
        assert torch.equal(stacked[indices], values[indices])
