"""Five simulators from fields that use sbi, written after all choices had been made.

Nothing in the package was changed because of them. One choice came later, because of
another simulator: errors that depend on the entries before, `BANDED`. They have no
reference posteriors, so methods are compared by the negative log-likelihood of fresh
pairs.
"""

import math

import torch
from sbi.neural_nets.embedding_nets import CNNEmbedding
from sbi.utils import BoxUniform
from torch import Tensor, nn
from torch.distributions import Independent, LogNormal

from benchmarks.tasks.task import Task


def _intervals(*bounds: tuple[float, float]) -> BoxUniform:
    return BoxUniform(*torch.tensor(bounds).T)


PEOPLE, DAYS, SEEN_EVERY, FIRST_CASES = 100, 40, 5, 3


def _epidemic(theta: Tensor) -> Tensor:
    """Infected people every five days, all cases, the peak and its day.

    Each pair of people are in contact or not, by chance. Each day an infected person
    infects a contact with a probability, and then recovers with another.
    """
    return torch.cat([_epidemics(some) for some in theta.split(500)])


def _epidemics(theta: Tensor) -> Tensor:
    infects, recovers, degree = theta.T.unsqueeze(-1)
    uniform = torch.rand(len(theta), PEOPLE, PEOPLE).triu(1)
    contact = (uniform > 1 - degree.unsqueeze(-1) / (PEOPLE - 1)).float()
    contact = contact + contact.mT
    infected = torch.zeros(len(theta), PEOPLE)
    infected[:, :FIRST_CASES] = 1
    susceptible, counts = 1 - infected, []
    for _ in range(DAYS):
        exposures = (contact @ infected.unsqueeze(-1)).squeeze(-1)
        risk = 1 - (1 - infects) ** exposures
        new = susceptible * (torch.rand_like(risk) < risk)
        infected = infected * (torch.rand_like(risk) >= recovers) + new
        susceptible = susceptible - new
        counts.append(infected.sum(-1))
    curve = torch.stack(counts, -1)
    peak, day = curve.max(-1, keepdim=True)
    cases = PEOPLE - susceptible.sum(-1, keepdim=True)
    return torch.cat([curve[:, SEEN_EVERY - 1 :: SEEN_EVERY], cases, peak, day], -1)


TRIALS, CHOICE_STEP, CHOICE_STEPS = 100, 0.01, 300
CHOICE_LEVELS = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])


def _drift_diffusion(theta: Tensor) -> Tensor:
    """Shares of two choices, and quantiles of the time that each takes.

    Evidence drifts from a start to one of two bounds. Quantiles of a choice that no trial
    ends with are zero.
    """
    drift, bound, start, delay = theta.T.unsqueeze(-1)
    evidence = (start * bound).expand(-1, TRIALS)
    time = torch.full_like(evidence, math.nan)
    choice = torch.zeros_like(evidence)
    for step in range(1, CHOICE_STEPS + 1):
        noise = math.sqrt(CHOICE_STEP) * torch.randn_like(evidence)
        evidence = evidence + drift * CHOICE_STEP + noise
        side = (evidence >= bound).float() - (evidence <= 0).float()
        ends = (choice == 0) & (side != 0)
        choice = torch.where(ends, side, choice)
        time = torch.where(ends, step * CHOICE_STEP, time)
    summary = []
    for side in (1, -1):
        taken = torch.where(choice == side, time + delay, math.nan)
        quantiles = taken.nanquantile(CHOICE_LEVELS, -1).T.nan_to_num(0.0)
        summary += [(choice == side).float().mean(-1, keepdim=True), quantiles]
    return torch.cat(summary, -1)


DOSE = 100.0
HOURS = torch.tensor([0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24])
LOST = 0.2


def concentration(absorption: Tensor, clearance: Tensor, volume: Tensor) -> Tensor:
    """Return concentrations at `HOURS` after a dose that is taken up at a rate."""
    elimination = clearance / volume
    rise = torch.exp(-elimination * HOURS) - torch.exp(-absorption * HOURS)
    return DOSE / volume * absorption / (absorption - elimination) * rise


def _pharmacokinetics(theta: Tensor) -> Tensor:
    """Measured log concentrations of a drug, and which of them were not lost."""
    absorption, clearance, volume, error = theta.T.unsqueeze(-1)
    exact = concentration(absorption, clearance, volume).clamp(min=1e-6)
    kept = (torch.rand_like(exact) >= LOST).float()
    measured = exact.log() + error * torch.randn_like(exact)
    return torch.cat([kept * measured, kept], -1)


PIXELS, FIELD_OF_VIEW, PIXEL_NOISE = 24, 2.0, 0.1


def _lens(theta: Tensor) -> Tensor:
    """An image of a round source behind a round lens with shear, (N, 1, 24, 24)."""
    radius, source_1, source_2, width, shear = theta.T[..., None, None]
    line = torch.linspace(-FIELD_OF_VIEW, FIELD_OF_VIEW, PIXELS)
    first, second = torch.meshgrid(line, line, indexing="xy")
    distance = (first.square() + second.square()).sqrt()
    bent = 1 - radius / distance
    off_1 = (bent - shear) * first - source_1
    off_2 = (bent + shear) * second - source_2
    light = torch.exp(-(off_1.square() + off_2.square()) / (2 * width.square()))
    return (light + PIXEL_NOISE * torch.randn_like(light)).unsqueeze(1)


def _image_embedding() -> nn.Module:
    return CNNEmbedding((PIXELS, PIXELS), output_dim=16)


STEP, NEURON_STEPS, ON, OFF, RECORDED_EVERY = 0.05, 2000, 200, 1800, 40
"""Milliseconds of a step, steps, those between which there is a current, and the steps
between two recorded voltages."""

CURRENT, CAPACITY, RECORDING_NOISE = 3.5, 1.0, 1.0


def _ratio(x: Tensor, scale: float) -> Tensor:
    """Return x / (exp(x / scale) − 1), whose value at zero is `scale`."""
    z = x / scale
    return scale * torch.where(z.abs() < 1e-4, 1 - z / 2, z / torch.expm1(z))


def _neuron(theta: Tensor) -> Tensor:
    """Voltages of a neuron while a current is injected, recorded every 2 ms.

    Sodium, potassium, leak and a slow potassium current (Pospischil et al. 2008), with
    noise of the current. Gates and voltage take exponential Euler steps.
    """
    (
        sodium,
        potassium,
        leak,
        slow,
        e_sodium,
        e_potassium,
        e_leak,
        threshold,
        tau,
        noise,
    ) = theta.T
    voltage, recorded = e_leak.clone(), []
    gates: list[Tensor] = []
    for step in range(NEURON_STEPS):
        v = voltage - threshold
        rates = [
            (0.32 * _ratio(13 - v, 4.0), 0.28 * _ratio(v - 40, 5.0)),
            (0.128 * torch.exp((17 - v) / 18), 4 / (1 + torch.exp((40 - v) / 5))),
            (0.032 * _ratio(15 - v, 5.0), 0.5 * torch.exp((10 - v) / 40)),
        ]
        w = (voltage + 35).clamp(-200, 200)
        slow_rate = (3.3 * torch.exp(w / 20) + torch.exp(-w / 20)) / tau
        limits = [a / (a + b) for a, b in rates] + [torch.sigmoid(w / 10)]
        speeds = [a + b for a, b in rates] + [slow_rate]
        if not gates:
            gates = limits
        gates = [
            limit + (gate - limit) * torch.exp(-STEP * speed)
            for gate, limit, speed in zip(gates, limits, speeds, strict=True)
        ]
        m, h, n, p = gates
        to_sodium, to_potassium = sodium * m**3 * h, potassium * n**4 + slow * p
        total = to_sodium + to_potassium + leak
        current = CURRENT * (ON <= step < OFF)
        current = current + noise * torch.randn_like(noise) / math.sqrt(STEP)
        inflow = to_sodium * e_sodium + to_potassium * e_potassium + leak * e_leak
        limit = (inflow + current) / total
        voltage = limit + (voltage - limit) * torch.exp(-STEP * total / CAPACITY)
        if (step + 1) % RECORDED_EVERY == 0:
            recorded.append(voltage)
    trace = torch.stack(recorded, -1)
    return trace + RECORDING_NOISE * torch.randn_like(trace)


def _log_normal(*medians_and_scales: tuple[float, float]) -> Independent:
    medians, scales = torch.tensor(medians_and_scales).T
    return Independent(LogNormal(medians.log(), scales), 1)


FIELDS = {
    task.name: task
    for task in (
        Task("epidemic", _intervals((0.01, 0.3), (0.05, 0.5), (2.0, 12.0)), _epidemic),
        Task(
            "drift_diffusion",
            _intervals((-2.0, 2.0), (0.5, 2.0), (0.3, 0.7), (0.1, 0.4)),
            _drift_diffusion,
        ),
        Task(
            "pharmacokinetics",
            _log_normal((1.5, 0.5), (5.0, 0.5), (50.0, 0.5), (0.2, 0.5)),
            _pharmacokinetics,
        ),
        Task(
            "lens",
            _intervals((0.5, 1.5), (-0.3, 0.3), (-0.3, 0.3), (0.1, 0.4), (-0.2, 0.2)),
            _lens,
            embedding=_image_embedding,
        ),
        Task(
            "neuron",
            _intervals(
                *((20.0, 80.0), (2.0, 15.0), (0.05, 0.4), (0.01, 0.3), (40.0, 60.0)),
                *((-100.0, -80.0), (-80.0, -60.0), (-70.0, -50.0)),
                *((200.0, 2000.0), (0.0, 0.3)),
            ),
            _neuron,
        ),
    )
}
