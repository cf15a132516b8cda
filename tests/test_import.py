"""What an import of the package costs: nothing beyond its own modules and sbi's."""

import subprocess
import sys

IMPORTED_BY_SBI = "import sbi.inference, sbi.diagnostics"


def modules_after(code):
    """Return the modules in memory after code was run in a fresh interpreter."""
    code = f"{code}; import sys; print('\\n', *sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_no_module_is_imported_that_sbi_does_not_import():
    """Neither arviz nor a figure: each would add its own time to that of sbi."""
    added = modules_after("import sbi_jeffreys") - modules_after(IMPORTED_BY_SBI)
    assert "sbi_jeffreys.trainer" in added
    assert not any(name.startswith("sbi_jeffreys.plots") for name in added)
    known = {"sbi_jeffreys", *sys.stdlib_module_names}
    assert {name for name in added if name.split(".")[0] not in known} == set()
