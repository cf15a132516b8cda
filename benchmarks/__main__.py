"""Command line: `python -m benchmarks`, alone or with the name of a command."""

import sys

try:
    from benchmarks.commands import main
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}. The benchmarks need more than the package: "
        "`pip install -r benchmarks/requirements.txt`."
    )

if __name__ == "__main__":
    main()
