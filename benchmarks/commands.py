"""The commands: what `python -m benchmarks` does with its arguments."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from benchmarks.accuracy import cells, held_out, standings
from benchmarks.methods.registry import METHODS
from benchmarks.paper.pages import EXPERIMENTS, faces
from benchmarks.report import measured_with, write
from benchmarks.speed import breakdown, growth, memory, race, sampling, steps
from benchmarks.speed.contenders import Case
from benchmarks.speed.effort import Effort
from benchmarks.tables import add_tables
from benchmarks.tasks.references import NUM_OBSERVATIONS
from benchmarks.tasks.sbibm import TASKS
from benchmarks.tasks.unseen import UNSEEN

HELP = ("-h", "--help")
CELLS = Path("results/accuracy/cells.csv")
DEFAULT_METHODS = ("npe_nsf", "npe_nsf_ensemble", "jnpe_flow", "jnpe_corrected")
PLAIN_TASKS = (
    "gaussian_linear_uniform",
    "gaussian_linear",
    "gaussian_mixture",
    "two_moons",
    "slcp",
)
PARTS = ("step", "breakdown", "sampling", "memory", "scaling", "accuracy")


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments and run the command that they name, by default `run`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in HELP):
        arguments = ["run", *arguments]
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(required=True)

    _add_run(
        commands.add_parser("run", help="C2ST against reference posteriors (default)")
    )
    report = commands.add_parser(
        "report", help="tables and figures of what `run` finished"
    )
    report.add_argument("--cells", nargs="+", type=Path, default=[CELLS])
    report.add_argument("--output", type=Path, default=Path("results/accuracy.md"))
    report.set_defaults(command=write_standings)

    paper = commands.add_parser("paper", help="the experiments of arXiv:2511.11159")
    paper.add_argument(
        "--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS)
    )
    paper.add_argument("--seeds", nargs="+", type=int, help="each has its default")
    paper.add_argument(
        "--num-samples", type=int, help="points or simulations; each has its default"
    )
    paper.add_argument("--epochs", type=int, help="each has its default")
    paper.add_argument(
        "--celeba",
        type=Path,
        help="folder of images for latent_images, instead of digits",
    )
    paper.add_argument("--jobs", type=int, default=1, help="processes of one thread")
    paper.add_argument("--output", type=Path, default=Path("results/paper"))
    paper.set_defaults(command=write_pages)

    nll = commands.add_parser(
        "nll",
        parents=[_trainings(TASKS | UNSEEN, UNSEEN, [0, 1, 2])],
        help="test negative log-likelihood on fresh pairs, beside sbi's NPE",
    )
    nll.add_argument(
        "--stretch", type=int, default=1, help="go on to this many times the epochs"
    )
    nll.add_argument("--without-npe", action="store_true")
    nll.add_argument(
        "--variants",
        nargs="+",
        choices=held_out.VARIANTS,
        default=["JNPE"],
        help="of JNPE's options, for ablations",
    )
    nll.add_argument("--output", type=Path, default=Path("results/nll.md"))
    nll.set_defaults(command=measure_nll)

    add_tables(commands)

    speed_parser = commands.add_parser(
        "speed",
        parents=[_trainings(TASKS, PLAIN_TASKS, [0])],
        help="time and memory beside sbi's NPE; the part accuracy alone uses tasks, the "
        "number of simulations and all seeds",
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
    speed_parser.add_argument("--rounds", type=int, default=Effort.rounds)
    speed_parser.add_argument("--output", type=Path, default=Path("results/speed.md"))
    speed_parser.set_defaults(command=measure_speed)

    parsed = parser.parse_args(arguments)
    parsed.command(parsed)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS)
    )
    parser.add_argument("--budgets", nargs="+", type=int, default=[1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument(
        "--observations",
        nargs="+",
        type=int,
        choices=range(1, NUM_OBSERVATIONS + 1),
        default=list(range(1, NUM_OBSERVATIONS + 1)),
        metavar="NUMBER",
    )
    parser.add_argument(
        "--classifiers",
        nargs="+",
        choices=cells.CLASSIFIERS,
        default=["rf"],
        help="sbi's random forest or sbibm's network, on all five folds or on one",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread")
    parser.add_argument("--device", default="cpu", help="device that JNPE trains on")
    parser.add_argument(
        "--output", type=Path, default=CELLS.parent, help="folder of cells and trainings"
    )
    parser.set_defaults(command=run_cells)


def run_cells(arguments: argparse.Namespace) -> None:
    """Compute the cells that are missing, then write the report beside them.

    Raises:
        SystemExit: If a cell failed. The others are finished first.
    """
    wanted = cells.cells(
        arguments.tasks,
        arguments.methods,
        arguments.budgets,
        arguments.seeds,
        arguments.observations,
    )
    folder = arguments.output
    failed = cells.run(
        wanted, arguments.classifiers, folder, arguments.jobs, arguments.device
    )
    finished = cells.read([folder / "cells.csv"])
    if len(finished):
        standings.write_report(finished, folder / "accuracy.md")
        print(standings.report(finished))
    if failed:
        sys.exit(
            f"{failed} trainings or cells failed; the same command tries them again."
        )


def write_standings(arguments: argparse.Namespace) -> None:
    """Write tables and figures of finished cells.

    Raises:
        SystemExit: If no cell is finished.
    """
    finished = cells.read(arguments.cells)
    if finished.empty:
        sys.exit(f"No finished cells in {', '.join(map(str, arguments.cells))}.")
    standings.write_report(finished, arguments.output)
    print(standings.report(finished))


def write_pages(arguments: argparse.Namespace) -> None:
    """Train what is missing of the paper's experiments, and write a page for each."""
    torch.set_num_threads(1)  # as in each training
    for name in arguments.experiments:
        experiment = EXPERIMENTS[name]
        if name == "latent_images" and arguments.celeba is not None:
            name, experiment = "latent_faces", faces(arguments.celeba)
        given = {
            part: value
            for part in experiment.effort._fields
            if (value := getattr(arguments, part)) is not None
        }
        effort = experiment.effort._replace(**given)
        print(experiment.page(name, effort, arguments.output, arguments.jobs), "\n")


def _trainings(
    tasks: Iterable[str], default: Iterable[str], seeds: list[int]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=list(default))
    parser.add_argument("--num-simulations", type=int, default=1000)
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    return parser


def measure_nll(arguments: argparse.Namespace) -> None:
    """Measure test NLLs, and write them after each training."""
    measured: list[held_out.Row] = []
    for row in held_out.measure(
        [(TASKS | UNSEEN)[name] for name in arguments.tasks],
        arguments.num_simulations,
        arguments.seeds,
        arguments.stretch,
        not arguments.without_npe,
        arguments.variants,
    ):
        measured.append(row)
        print(row, flush=True)
        write(arguments.output, held_out.report(measured))
    print(held_out.report(measured))


def measure_speed(arguments: argparse.Namespace) -> None:
    """Measure part by part, and write the finished sections after each."""
    torch.set_num_threads(arguments.threads)
    if torch.device(arguments.device).type == "cuda":  # graphs need a stream of their own
        torch.cuda.set_device(arguments.device)
        torch.cuda.set_stream(torch.cuda.Stream())
    base = Case(device=arguments.device, seed=arguments.seeds[0])
    cases = [base, Case(10_000, device=base.device, seed=base.seed)]
    effort = Effort(rounds=arguments.rounds)
    measurements: dict[str, Callable[[], str]] = {
        "step": lambda: steps.steps_and_epochs(cases, effort),
        "breakdown": lambda: breakdown.breakdown(cases, effort),
        "sampling": lambda: sampling.sampling(base, effort),
        "memory": lambda: memory.memory(cases),
        "scaling": lambda: growth.growth(base, effort),
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
    """Yield the section on accuracy again after each training, with one more line."""
    finished = []
    for each in race.race(
        [TASKS[name] for name in arguments.tasks],
        arguments.num_simulations,
        arguments.seeds,
        arguments.device,
    ):
        print(each, flush=True)
        finished.append(each)
        yield race.report(finished, arguments.num_simulations)
