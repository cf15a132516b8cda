"""Rows of a CSV file: computed once, and read as they were written."""

from typing import NamedTuple

import pytest

from benchmarks import rows


class Row(NamedTuple):
    name: str
    value: float
    commit: str


@pytest.mark.parametrize("commit", ["2629299", "12e3456", "0012345", "abc1234*"])
def test_a_commit_is_text_even_if_it_looks_like_a_number(commit, tmp_path):
    calls = []

    def compute(name):
        calls.append(name)
        return Row(name, 1.5, commit)

    path = tmp_path / "rows.csv"
    for _ in range(2):
        found = rows.finish(compute, [("one",)], path, 1, Row._fields)
        assert list(found.commit) == list(rows.read(path).commit) == [commit]
    assert calls == ["one"]
