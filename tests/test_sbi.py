"""What the package touches of the private parts of sbi and nflows, and if it is there.

`sbi_jeffreys._sbi.TOUCHED` lists it. After an update of sbi, a failure here says which
name moved.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import sbi

import sbi_jeffreys

PACKAGE = Path(sbi_jeffreys.__file__).parent
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "_sbi.py"})
NOT_PRIVATE = {"_sbi", "_arviz", "_asdict", "_fields", "_make", "_replace"}
"""Modules of this package, and what named tuples offer."""

OF_TORCH = {"_foreach_add_", "_foreach_lerp_", "_foreach_mul_", "_foreach_sub"} | {
    "_validate_args"
}
"""The loops over parameters that torch's own optimisers use, and a flag of its priors."""

OF_SELF = r"\b(?:self|cls|super\(\))\.(_[a-z]\w*)|\bdef (_[a-z]\w*)"


@pytest.fixture
def touched():
    """Pairs of a class or module of sbi or nflows and a private name of it."""
    from sbi_jeffreys._sbi import TOUCHED

    return [(owner, name) for owner, names in TOUCHED.items() for name in names]


def private_names(path):
    """Yield private names that are imported, or taken from something else than self."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute):
            own = ast.unparse(node.value) in ("self", "cls", "super()")
            names = [] if own else [node.attr]
        else:
            continue
        for name in names:
            if re.match("_[^_]", name) and name not in NOT_PRIVATE | OF_TORCH:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {name}"


def names_of_self(classes):
    """Return the private names that classes take from `self`, or define.

    Python's own classes have none. From 3.12 on, `Generic` has no source."""
    written = [each for each in classes if each.__module__ not in ("builtins", "typing")]
    sources = map(inspect.getsource, written)
    return {a or b for source in sources for a, b in re.findall(OF_SELF, source)}


def test_private_names_of_others_are_used_in_one_module():
    assert [found for path in MODULES for found in private_names(path)] == []


def test_what_is_inherited_is_listed(touched):
    """If sbi renamed a method that is overridden here, it would call its own instead."""
    listed = {name for _, name in touched}
    unlisted = []
    for info in pkgutil.walk_packages(sbi_jeffreys.__path__, "sbi_jeffreys."):
        module = importlib.import_module(info.name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            bases = [
                base
                for base in inspect.getmro(kind)
                if base.__module__.split(".")[0] in ("sbi", "nflows")
            ]
            if kind.__module__ == info.name and bases:
                inherited = names_of_self([kind]) & names_of_self(bases) - listed
                unlisted += [f"{info.name}.{kind.__name__}: {n}" for n in inherited]
    assert unlisted == []


def test_what_is_listed_is_there(touched):
    gone = [
        f"{owner.__name__}.{name}"
        for owner, name in touched
        if not hasattr(owner, name)
        and not (inspect.isclass(owner) and name in names_of_self(inspect.getmro(owner)))
    ]
    assert not gone, (
        f"sbi {sbi.__version__} has no {', '.join(gone)}: see `sbi_jeffreys/_sbi.py`, "
        "the one module that uses what begins with an underscore."
    )
