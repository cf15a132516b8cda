"""The time of each part of JNPE's step, and of its matrix products alone."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import section, table
from benchmarks.speed.contenders import Case, JNPESteps, milliseconds, seconds
from benchmarks.speed.effort import Effort
from sbi_jeffreys.data.batches import Batch
from sbi_jeffreys.models.conditional import Conditional
from sbi_jeffreys.objective.divergences import jeffreys_divergences
from sbi_jeffreys.training.cuda_graph import cuda_graph
from sbi_jeffreys.training.loop import JeffreysTraining

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)


class Breakdown(NamedTuple):
    """Seconds of a step, and of its parts when they run alone.

    Attributes:
        step: The whole step, with fetching the batch.
        data: Fetching the batch.
        forward: The flow's log density of the parameters, and its gradient.
        inverse: The flow's draws with their log densities, and their gradient.
        energy: The energy at parameters and draws, the objective, and their gradient.
        optimizer: Clipping, Adam, moving average, multipliers.
        products: The step's matrix products, one after the other.
        num_products: Number of matrix products.
        flops: Floating-point operations in the matrix products.
    """

    step: float
    data: float
    forward: float
    inverse: float
    energy: float
    optimizer: float
    products: float
    num_products: int
    flops: int

    @property
    def overhead(self) -> float:
        """Seconds that the parts do not account for. May be negative: parts run alone."""
        parts = self.data + self.forward + self.inverse + self.energy + self.optimizer
        return self.step - parts

    @property
    def floor(self) -> float:
        """Time of the matrix products alone, as a share of the step."""
        return self.products / self.step


def breakdown(cases: Iterable[Case], effort: Effort) -> str:
    """Break a step of JNPE down into its parts."""
    cases = list(cases)
    parts = [
        break_down(JNPESteps(case), effort.rounds, effort.num_steps) for case in cases
    ]
    rows: dict[str, Callable[[Breakdown], Any]] = {
        "step, ms": lambda b: milliseconds(b.step),
        "data: fetching a batch": lambda b: milliseconds(b.data),
        "flow, forward direction": lambda b: milliseconds(b.forward),
        "flow, inverse direction": lambda b: milliseconds(b.inverse),
        "energy and objective": lambda b: milliseconds(b.energy),
        "optimiser": lambda b: milliseconds(b.optimizer),
        "overhead: step − sum": lambda b: milliseconds(b.overhead),
        "matrix products alone": lambda b: milliseconds(b.products),
        "their number": lambda b: b.num_products,
        "their GFLOP": lambda b: f"{b.flops / 1e9:.2f}",
        "**floor / step**": lambda b: f"**{b.floor:.2f}**",
    }
    names = [f"{case.num_simulations:,} simulations" for case in cases]
    return section(
        "Where JNPE's step goes",
        "Times in ms, medians over rounds. Each part runs alone, forwards and backwards. "
        "Work that both directions of the flow share counts for the forward direction. "
        "The inverse direction is the time of both less that of the forward direction. "
        "The floor is the time of the step's matrix products (mm, addmm, bmm). They are "
        "recorded from one step and run one after the other with their own operands. "
        "Triangular solves are not counted in it.",
        table(
            ["", *names],
            [[row, *(cell(part) for part in parts)] for row, cell in rows.items()],
        ),
    )


def break_down(steps: JNPESteps, rounds: int, num_steps: int) -> Breakdown:
    """Time the parts in turn, `num_steps` of each in a round, and return medians.

    On CUDA each part is captured and replayed, as the step is.
    """
    training, batch = steps.training, next(steps.batches)
    with FlopCounterMode(display=False) as counter, Record() as record:
        training.step(*batch)
    products = record.calls
    parts: dict[str, Callable[[], Any]] = {
        "step": lambda: steps.run(1),
        "data": lambda: next(steps.batches),
    }
    computations = {
        "forward": lambda: _flow(training, batch, with_draws=False),
        "both": lambda: _flow(training, batch, with_draws=True),
        "energy": _energy(training, batch),
        "optimizer": _optimizer(training),
        "products": lambda: _run(products),
    }
    for name, part in computations.items():
        part()
        parts[name] = cuda_graph(part) if training.device.type == "cuda" else part
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            some = seconds(partial(_repeat, part, num_steps), steps.device)
            times[name].append(some / num_steps)
    return Breakdown(
        **{name: median(times[name]) for name in times if name != "both"},
        inverse=median(
            both - forward
            for both, forward in zip(times["both"], times["forward"], strict=True)
        ),
        num_products=len(products),
        flops=counter.get_total_flops(),
    )


def _repeat(function: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        function()


def _flow(training: JeffreysTraining, batch: Batch, with_draws: bool) -> None:
    """Descend on the flow's terms. x is embedded once for both directions."""
    options = training.pair.options
    flow = training.pair.flow.given(batch.x)
    value = -flow.log_prob(batch.theta.unsqueeze(0)).mean()
    if with_draws:
        draws, log_p = flow.rsample_and_log_prob(options.num_particles)
        value = value + draws.mean() + log_p.mean()
    training.step.zero_grad()
    value.backward()


def _energy(training: JeffreysTraining, batch: Batch) -> Callable[[], None]:
    """Return a function that descends on the objective, with draws made in advance."""
    options = training.pair.options
    flow, energy = training.pair.given(batch.x, training.pair.energy.members)
    with torch.no_grad():
        drawn = _Drawn(
            flow.log_prob(batch.theta.unsqueeze(0)),
            *flow.rsample_and_log_prob(options.num_particles),
        )

    def descend() -> None:
        divergences = jeffreys_divergences(
            drawn, energy, batch.theta, options.num_particles, options.normalizer
        ).mean(batch.weights)
        training.step.zero_grad()
        (training.step.multipliers.values * divergences).sum().backward()

    return descend


class _Drawn(Conditional):
    """A flow that was evaluated and sampled in advance. Gradients end there."""

    def __init__(self, log_prob: Tensor, draws: Tensor, log_prob_draws: Tensor) -> None:
        self.at_data = log_prob.requires_grad_()
        self.draws = draws.requires_grad_(), log_prob_draws.requires_grad_()

    def log_prob(self, input: Tensor) -> Tensor:
        return self.at_data

    def rsample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        return self.draws


def _optimizer(training: JeffreysTraining) -> Callable[[], None]:
    """Return a function that does what follows a backward pass, with small gradients."""
    step = training.step
    divergences = torch.ones(3, device=training.device)
    step.gather()
    step.zero_grad()
    for weights in chain(*step.groups):
        weights.grad = torch.full_like(weights, 1e-6)

    def update() -> None:
        step.descend()
        step.multipliers.update(step.reference.subtract(divergences))

    return update


Call = tuple[Callable[..., Tensor], tuple[Any, ...]]


@torch.no_grad()
def _run(products: list[Call]) -> None:
    for product, operands in products:
        product(*operands)


class Record(TorchDispatchMode):
    """Records the matrix products that run, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in PRODUCTS:
            operands = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
            self.calls.append((func, operands))
        return func(*args, **(kwargs or {}))
