"""Where modules stand, how large they are, and what they may import."""

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median

import sbi_jeffreys

PACKAGE = Path(sbi_jeffreys.__file__).parent
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})
ORDER = [
    *(
        "density",
        "trainer",
        "fit",
        "stages",
        "plots",
        "rounds",
        "posteriors",
        "diagnostics",
        "options",
    ),
    *(
        "proposals",
        "pool",
        "training",
        "objective",
        "models",
        "sampling",
        "preprocessing",
        "progress",
        "data",
    ),
    *("tables", "_sbi", "_arviz"),
]
"""A room may import itself and those after it; `_sbi` and `_arviz` import none."""


WHEN_CALLED = {"diagnostics/diagnose.py imports plots"}
"""`Diagnosis.plot` draws itself."""


def imported_rooms(path):
    """Yield what a module imports of the package: the room, or a name of `__init__`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (n.split(".")[1] for n in names if n.startswith(f"{PACKAGE.name}."))


def test_imports_point_down_the_list():
    upwards = []
    for path in MODULES:
        module = path.relative_to(PACKAGE)
        room = module.with_suffix("").parts[0]
        allowed = [] if room.startswith("_") else ORDER[ORDER.index(room) :]
        rooms = sorted(set(imported_rooms(path)).difference(allowed))
        upwards += [f"{module} imports {imported}" for imported in rooms]
    assert set(upwards) == WHEN_CALLED
    assert "sbi_jeffreys.plots" not in top_level_imports()


def top_level_imports():
    """Modules of the package that `import sbi_jeffreys` loads."""
    code = "import sys, sbi_jeffreys; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()


def test_modules_and_folders_are_small():
    lines = {str(p.relative_to(PACKAGE)): p.read_text().count("\n") for p in MODULES}
    assert {name: num for name, num in lines.items() if num > 350} == {}
    assert median(lines.values()) <= 150
    modules = [path for path in MODULES if path.name != "__init__.py"]
    folders = [path.parent for path in modules]
    assert {str(f): folders.count(f) for f in folders if folders.count(f) > 12} == {}
