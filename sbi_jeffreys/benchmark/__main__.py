"""Command line: `python -m sbi_jeffreys.benchmark nll`."""

import argparse
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import torch

from sbi_jeffreys.benchmark.held_out import Row, measure
from sbi_jeffreys.benchmark.tasks import TASKS

COLUMNS = ("flow", "energy", "flow_last", "energy_last")


def main() -> None:
    """Parse the arguments, measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m sbi_jeffreys.benchmark")
    commands = parser.add_subparsers(dest="command", required=True)
    nll = commands.add_parser(
        "nll", help="test negative log-likelihood on fresh pairs, beside sbi's NPE"
    )
    nll.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    nll.add_argument("--num-simulations", type=int, default=1000)
    nll.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    nll.add_argument(
        "--stretch", type=int, default=1, help="train this many times as long afterwards"
    )
    nll.add_argument("--without-npe", action="store_true")
    nll.add_argument("--output", type=Path, default=Path("results/nll.md"))
    arguments = parser.parse_args()

    rows: list[Row] = []
    for row in measure(
        [TASKS[name] for name in arguments.tasks],
        arguments.num_simulations,
        arguments.seeds,
        arguments.stretch,
        not arguments.without_npe,
    ):
        rows.append(row)
        print(row, flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(_report(rows))
    print(_report(rows))


def _report(rows: list[Row]) -> str:
    machine = (
        f"sbi {version('sbi')}, torch {torch.__version__}, nflows {version('nflows')}, "
        f"Python {platform.python_version()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads"
    )
    lines = [
        "Test NLL in nats (lower is better): mean ± standard deviation over seeds.",
        "",
        f"Measured with {machine}.",
        "",
        "| task | method | simulations | seeds | flow | energy | flow, last epoch | "
        "energy, last epoch | epochs | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.method, row.num_simulations), []).append(row)
    for (task, method, simulations), group in groups.items():
        losses = [_spread([getattr(row, name) for row in group]) for name in COLUMNS]
        cells = [
            task,
            method,
            str(simulations),
            " ".join(str(row.seed) for row in group),
            *losses,
            f"{mean(row.epochs for row in group):.0f}",
            f"{mean(row.seconds for row in group):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    if any(value != value for value in values):
        return ""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
