"""Run sbi's own test suite with JNPE in the place of NPE.

    python -m tests.conformance [--full] [pytest arguments]

Fetches the source distribution of sbi by name, unpacks its tests (nothing of them is
kept in this repository) and runs them with `jnpe_as_npe`. The fast tier is
the files in FAST_TIER; `--full` runs every file. Tests that are expected to differ are
listed, with the reason, in `expected_differences`; the run succeeds exactly if no
other test fails and each of those does.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from pathlib import Path

SBI_VERSION = "0.27.0"
HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".conformance"
FAST_TIER = (
    "posterior_nn_test",
    "posterior_parameters_test",
    "save_and_load_test",
    "density_estimator_test",
    "linearGaussian_snpe_test",
    "inference_with_NaN_simulator_test",
    "training_dataclasses_test",
    "base_test",
    "plot_test",
    "sbc_test",
    "ensemble_test",
    "user_input_checks_test",
    "embedding_net_test",
)


def fetch_tests() -> Path:
    """Return the folder that holds sbi's `tests`, fetched if it is not there yet."""
    folder = CACHE / f"sbi-{SBI_VERSION}"
    if not (folder / "tests").exists():
        CACHE.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", "sbi", "--no-build-isolation", f"sbi=={SBI_VERSION}"]
        subprocess.run([*command, "--dest", str(CACHE)], check=True)
        with tarfile.open(CACHE / f"sbi-{SBI_VERSION}.tar.gz") as archive:
            wanted = (f"sbi-{SBI_VERSION}/tests/", f"sbi-{SBI_VERSION}/PKG-INFO")
            archive.extractall(
                CACHE, [m for m in archive.getmembers() if m.name.startswith(wanted)]
            )
    return folder


def main() -> int:
    """Run the tests, and return pytest's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--full", action="store_true", help="run every file of sbi's")
    arguments, pytest_arguments = parser.parse_known_args()
    folder = fetch_tests()
    if arguments.full:
        files = [str(folder / "tests")]
    else:
        files = [str(folder / "tests" / f"{name}.py") for name in FAST_TIER]
    command = [sys.executable, "-m", "pytest", "-p", "jnpe_as_npe"]
    command += ["-c", "/dev/null", "--rootdir", str(folder), "-m", "not slow and not gpu"]
    return subprocess.run(
        [*command, *pytest_arguments, *files],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parents[1]))),
        },
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
