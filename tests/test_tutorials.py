"""Notebooks hold what their scripts do. CI runs the scripts."""

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

SCRIPTS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


def cells(path):
    notebook = jupytext.read(path)
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_that_of_the_script(script):
    """If not: `jupytext --update --to ipynb tutorials/*.py`."""
    assert cells(script) == cells(script.with_suffix(".ipynb"))
