"""Files of lines: cut short, written by several processes, damaged."""

import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from benchmarks import lines

COLUMNS = ("name", "value")


def make(path, *values):
    for value in values:
        lines.append(path, {"name": "a", "value": value}, COLUMNS)
    return path


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_line_that_was_cut_short_is_left_out_and_then_removed(cut, tmp_path):
    """A value of 0.98 is not what was written, 0.98225."""
    path = make(tmp_path / "rows.csv", 0.5, 0.98225)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.warns(UserWarning, match=r"rows\.csv: the last line, 3, is incomplete"):
        assert list(lines.read(path).value) == [0.5]
    make(path, 0.98225)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(lines.read(path).value) == [0.5, 0.98225]
    assert path.read_text() == "name,value\na,0.5\na,0.98225\n"


def test_a_header_that_was_cut_short_is_written_again(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("name,va")
    with pytest.warns(UserWarning, match="the last line, 1, is incomplete"):
        assert not len(lines.read(path))
    assert list(lines.read(make(path, 0.5)).value) == [0.5]


def append_some(path):
    for number in range(20):
        lines.append(path, {"name": "x" * 5000, "value": number}, COLUMNS)


def test_several_writers_make_one_header_and_whole_lines(tmp_path):
    path = tmp_path / "rows.csv"
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(append_some, [path] * 4))
    found = lines.read(path)
    assert list(found.columns) == list(COLUMNS)
    assert sorted(found.value) == sorted(4 * list(range(20)))


@pytest.mark.parametrize(
    ("line", "what"), [("a", "1"), ("a,1,2", "3"), ("name,value", "a second header")]
)
def test_an_error_names_the_file_and_the_line(line, what, tmp_path):
    path = make(tmp_path / "rows.csv", 0.5)
    with path.open("a") as file:
        file.write(line + "\n")
    make(path, 1.5)
    with pytest.raises(ValueError, match=rf"rows\.csv, line 3: expected 2 .* got {what}"):
        lines.read(path)


def test_a_file_of_another_version_is_left_as_it_is(tmp_path):
    path = make(tmp_path / "rows.csv", 0.5)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"rows\.csv to have the columns"):
        lines.append(path, {"name": "a"}, ("name", "other"))
    assert path.read_bytes() == before
