"""`python -m benchmarks` without what it needs."""

import runpy
import sys

import pytest


def test_a_missing_requirement_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.commands", None)
    with pytest.raises(SystemExit, match=r"commands.*benchmarks/requirements\.txt"):
        runpy.run_module("benchmarks", run_name="__main__")
