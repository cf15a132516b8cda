"""Configure the documentation.

Build it from the root of the repository:
    python -m sphinx -W --keep-going -b html docs docs/_build/html

Tutorials and benchmark results live elsewhere in the repository. They are copied into
`docs/tutorials` and `docs/results`, which git ignores, before each build.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy.typing
from sphinx.application import Sphinx


class ArrayLike:
    """Stands for numpy's, whose long definition would fill the signatures."""


numpy.typing.ArrayLike = ArrayLike  # before the package is imported

import sbi_jeffreys  # noqa: E402

DOCS = Path(__file__).parent
ROOT = DOCS.parent


def copy_tree(source: Path, target: Path, suffixes: tuple[str, ...]) -> None:
    """Copy the files with these suffixes, and remove what an earlier build left."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        if path.suffix in suffixes:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)  # keeps the time, so that Sphinx skips what is old


def name_language(notebook: Path) -> None:
    """Say that a notebook without metadata is in Python, so that it is highlighted."""
    content = json.loads(notebook.read_text())
    content["metadata"].setdefault("language_info", {"name": "python"})
    notebook.write_text(json.dumps(content))


copy_tree(ROOT / "tutorials", DOCS / "tutorials", (".ipynb",))
for path in (DOCS / "tutorials").glob("*.ipynb"):
    name_language(path)
copy_tree(ROOT / "benchmarks" / "results", DOCS / "results", (".md", ".png"))
for path in (DOCS / "results").rglob("*.md"):  # values stay on the line of their errors
    path.write_text(
        path.read_text().replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    )

project = "sbi_jeffreys"
author = "The sbi_jeffreys authors"
copyright = author
release = version = sbi_jeffreys.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # most types belong to torch, numpy and sbi

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs that the notebooks hold are shown

default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
autoclass_content = "both"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = True

html_theme = "furo"
html_title = f"sbi_jeffreys {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "source_repository": "https://github.com/sbi-jeffreys/sbi_jeffreys/",
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_exclude = ".linenos, .gp, .go"

LITERAL = re.compile(
    r"(^(?: *)\.\. math::.*(?:\n(?: +.*| *))*"  # directives with what is indented below
    r"|``[^`]+``|`[^`]+`"
    r"|\$[^$]+\$)",
    re.MULTILINE,
)


def to_rst(text: str) -> str:
    r"""Turn what the docstrings' plain text means into what reStructuredText says.

    `$...$` is mathematics, "|" outside of code is no substitution, and a section
    "Example:" holds code.
    """
    parts = LITERAL.split(text)
    for i, part in enumerate(parts):
        if part.startswith("$"):
            parts[i] = f":math:`{part[1:-1]}`"
        elif i % 2 == 0:
            parts[i] = re.sub(r"(?<!\\)\|", r"\\|", part)
    return re.sub(r"(?m)^(\s*Examples?):$", r"\1::\n", "".join(parts))


COLON = "\ue000"


def prepare_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Apply `to_rst` to a docstring, before napoleon reads it.

    Hide colons in the first line of a property: napoleon would take them for a type.
    """
    lines[:] = to_rst("\n".join(lines)).split("\n")
    if what in ("attribute", "property"):
        lines[0] = lines[0].replace(":", COLON)


def finish_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Put the colons back, after napoleon."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def setup(app: Sphinx) -> None:
    """Register the hooks before and after napoleon's, which has the priority 500."""
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)
    app.connect("autodoc-process-docstring", finish_docstring, priority=600)
