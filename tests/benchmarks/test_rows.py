"""Rows of a CSV file: computed once, and read as they were written."""

from typing import NamedTuple

import pandas as pd
import pytest

from benchmarks import rows
from benchmarks.report import made_by


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


def test_rows_of_several_commits_are_not_mixed(tmp_path, monkeypatch):
    """Those there are can still be read by other code."""
    path = tmp_path / "rows.csv"
    for number, name in enumerate(("abc1234", "def5678")):
        monkeypatch.setattr(rows, "commit", lambda name=name: name)
        keys = [("one",), ("two",)][: 1 + number]

        def compute(key, name=name):
            return Row(key, 1.5, name)

        if number:
            with pytest.raises(ValueError, match=r"of commit def5678.* got those of abc"):
                rows.finish(compute, keys, path, 1, Row._fields)
        assert len(rows.finish(compute, keys[:1], path, 1, Row._fields)) == 1


def test_pages_of_several_commits_are_refused():
    finished = pd.DataFrame({"commit": ["abc", "abc"], "measured_with": "a machine"})
    assert made_by(finished) == "Commit abc; a machine."
    with pytest.raises(ValueError, match="one commit, got abc def"):
        made_by(finished.assign(commit=["abc", "def"]))
