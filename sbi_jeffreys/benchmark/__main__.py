"""Command line: `python -m sbi_jeffreys.benchmark nll` and `... speed`."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sbi_jeffreys.benchmark import accuracy, held_out, speed
from sbi_jeffreys.benchmark.contenders import Case
from sbi_jeffreys.benchmark.report import measured_with, write
from sbi_jeffreys.benchmark.tasks import TASKS

PARTS = ("step", "breakdown", "sampling", "memory", "scaling", "accuracy")


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments, and run a command."""
    parser = argparse.ArgumentParser(prog="python -m sbi_jeffreys.benchmark")
    commands = parser.add_subparsers(required=True)

    nll = commands.add_parser(
        "nll",
        parents=[_trainings([0, 1, 2])],
        help="test negative log-likelihood on fresh pairs, beside sbi's NPE",
    )
    nll.add_argument(
        "--stretch", type=int, default=1, help="train this many times as long afterwards"
    )
    nll.add_argument("--without-npe", action="store_true")
    nll.add_argument("--output", type=Path, default=Path("results/nll.md"))
    nll.set_defaults(command=measure_nll)

    speed_parser = commands.add_parser(
        "speed",
        parents=[_trainings([0])],
        help="time and memory beside sbi's NPE; tasks, numbers of simulations and seeds "
        "but the first are those of the part accuracy",
    )
    speed_parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS[:-1]),
        help="by default all but accuracy, which takes long",
    )
    speed_parser.add_argument("--device", default="cpu")
    speed_parser.add_argument("--threads", type=int, default=1)
    speed_parser.add_argument("--rounds", type=int, default=speed.Effort.rounds)
    speed_parser.add_argument("--output", type=Path, default=Path("results/speed.md"))
    speed_parser.set_defaults(command=measure_speed)

    parsed = parser.parse_args(arguments)
    parsed.command(parsed)


def _trainings(seeds: list[int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--num-simulations", type=int, default=1000)
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    return parser


def measure_nll(arguments: argparse.Namespace) -> None:
    """Measure test NLLs, and write them after each training."""
    rows: list[held_out.Row] = []
    for row in held_out.measure(
        [TASKS[name] for name in arguments.tasks],
        arguments.num_simulations,
        arguments.seeds,
        arguments.stretch,
        not arguments.without_npe,
    ):
        rows.append(row)
        print(row, flush=True)
        write(arguments.output, held_out.report(rows))
    print(held_out.report(rows))


def measure_speed(arguments: argparse.Namespace) -> None:
    """Measure part by part, and write the sections that there are."""
    torch.set_num_threads(arguments.threads)
    if torch.device(arguments.device).type == "cuda":  # graphs want another than the
        torch.cuda.set_device(arguments.device)  # default stream
        torch.cuda.set_stream(torch.cuda.Stream())
    base = Case(device=arguments.device, seed=arguments.seeds[0])
    cases = [base, Case(10_000, device=base.device, seed=base.seed)]
    effort = speed.Effort(rounds=arguments.rounds)
    measurements: dict[str, Callable[[], str]] = {
        "step": lambda: speed.steps_and_epochs(cases, effort),
        "breakdown": lambda: speed.breakdown(cases, effort),
        "sampling": lambda: speed.sampling(base, effort),
        "memory": lambda: speed.memory(cases),
        "scaling": lambda: speed.scaling(base, effort),
    }
    sections = [
        "# Speed, beside sbi's NPE",
        f"Measured with {measured_with(base.device)}; seed {base.seed}.",
    ]
    for part in arguments.parts:
        grown = _races(arguments) if part == "accuracy" else [measurements[part]()]
        for section in grown:
            write(arguments.output, "\n\n".join([*sections, section]))
        print(f"{section}\n", flush=True)
        sections.append(section)


def _races(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the section on accuracy, a line longer each time."""
    races = []
    for race in accuracy.race(
        [TASKS[name] for name in arguments.tasks],
        arguments.num_simulations,
        arguments.seeds,
        arguments.device,
    ):
        print(race, flush=True)
        races.append(race)
        yield accuracy.report(races, arguments.num_simulations)


if __name__ == "__main__":
    main()
