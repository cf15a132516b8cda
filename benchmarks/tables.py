"""The commands that make a table each: a row for a training, and a page of all rows."""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import rows
from benchmarks.controls import page as controls_page
from benchmarks.controls import trainings as controls
from benchmarks.cost import page as cost_page
from benchmarks.cost import trainings as cost
from benchmarks.formulations import page as formulations_page
from benchmarks.formulations import trainings as formulations
from benchmarks.report import write, write_with_figure
from benchmarks.rounds import page as rounds_page
from benchmarks.rounds import runs
from benchmarks.stress import page as stress_page
from benchmarks.stress import trainings as stress
from benchmarks.tasks.sbibm import TASKS
from benchmarks.trust import page as trust_page
from benchmarks.trust import trainings as trust
from benchmarks.trust.exact import EXACT

Arguments = argparse.Namespace
Keys = Callable[[Arguments], Iterable[tuple[Any, ...]]]


def add_tables(commands: Any) -> None:
    """Add these commands to a parser.

    Args:
        commands: What its `add_subparsers` returned.
    """
    parser = commands.add_parser(
        "cost", help="accuracy against CPU seconds of training, beside sbi's NPE"
    )
    _add_grid(parser, cost.ALL_TASKS, [100, 250, 1000, 10_000], [200, 201, 202])
    _add_methods(parser, cost.METHODS)
    parser.add_argument("--device", default="cpu", help="device that JNPE trains on")
    _add_run(parser, cost, cost_page)

    parser = commands.add_parser(
        "rounds", help="one observation and a fixed number of simulations, in rounds"
    )
    tasks = [name for name in TASKS if name != "folded_gaussian"]
    _add_grid(parser, tasks, [100, 300, 1000, 3000], [200, 201])
    _add_methods(parser, runs.METHODS)
    parser.add_argument("--observations", nargs="+", type=int, default=list(range(1, 11)))
    _add_run(parser, runs, rounds_page)

    parser = commands.add_parser(
        "formulations", help="which problem flow and energy are trained to solve"
    )
    _add_grid(parser, formulations.TASKS, [250, 1000], range(210, 215))
    _add_run(parser, formulations, formulations_page, _formulation_keys)

    parser = commands.add_parser(
        "controls", help="what each part of JNPE gives, beside sbi's NPE"
    )
    _add_grid(parser, controls.ALL_TASKS, [1000], range(300, 305))
    _add_methods(parser, controls.METHODS)
    _add_run(parser, controls, controls_page)

    parser = commands.add_parser(
        "trust", help="what predicts errors, on tasks whose posterior is known"
    )
    _add_grid(parser, EXACT, [250, 1000], [220, 221])
    _add_run(parser, trust, trust_page)

    parser = commands.add_parser(
        "stress", help="short trainings on data of many kinds: none may fail silently"
    )
    parser.add_argument("--num", type=int, default=500, help="number of trainings")
    _add_run(parser, stress, stress_page, lambda a: [(seed,) for seed in range(a.num)])


def _add_grid(
    parser: argparse.ArgumentParser,
    tasks: Iterable[str],
    budgets: list[int],
    seeds: Iterable[int],
) -> None:
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=list(tasks))
    parser.add_argument("--budgets", nargs="+", type=int, default=budgets)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))


def _add_methods(parser: argparse.ArgumentParser, methods: Iterable[str]) -> None:
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(methods))


def _grid(arguments: Arguments) -> Iterable[tuple[Any, ...]]:
    """Yield keys seed by seed, so that a run that is cut short has all tasks."""
    given = vars(arguments)
    # A table without methods or observations has none in its keys.
    methods, observations = (
        [[value] for value in given[name]] if name in given else [[]]
        for name in ("methods", "observations")
    )
    for seed, num, observation, task, method in product(
        arguments.seeds, arguments.budgets, observations, arguments.tasks, methods
    ):
        yield (task, *method, num, seed, *observation)


def _formulation_keys(arguments: Arguments) -> Iterable[tuple[Any, ...]]:
    return formulations.keys(arguments.tasks, arguments.budgets, arguments.seeds)


def _add_run(
    parser: argparse.ArgumentParser,
    trainings: ModuleType,
    page: ModuleType,
    keys: Keys = _grid,
) -> None:
    """Let a command compute the rows that are missing, and write the page of all rows.

    Args:
        parser: Parser of the command.
        trainings: Has `Row`, and `measure`, which computes one.
        page: Has `report`, and may have `figure`. Both take rows.
        keys: Returns the keys of the rows that are wanted.
    """
    name = parser.prog.split()[-1]
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread")
    parser.add_argument("--output", type=Path, default=Path("results") / name)

    def run(arguments: Arguments) -> None:
        measure = trainings.measure
        if "device" in arguments:
            measure = partial(measure, device=arguments.device)
        path, columns = arguments.output / f"{name}.csv", trainings.Row._fields
        rows.finish(measure, keys(arguments), path, arguments.jobs, columns)
        finished = rows.read(path)
        text = page.report(finished)
        if hasattr(page, "figure"):
            write_with_figure(arguments.output, name, text, page.figure(finished))
        else:
            write(arguments.output / f"{name}.md", text)
        print(text)

    parser.set_defaults(command=run)
