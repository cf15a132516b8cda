"""The rates at which posteriors of JNPE and of sbi's NPE are sampled."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.report import section, table
from benchmarks.speed.contenders import Case, Comparison, compare, seconds
from benchmarks.speed.effort import Effort, max_num_epochs_expected

NOTE = """\
Samples a second, and the ratio of times, JNPE's to NPE's, after {epochs} epochs on
{simulations} simulations with D = {dim}. For one observation, NPE rejects samples outside
of the prior. For many observations rejection is switched off, because it may not end: for
some observations almost no sample is accepted. JNPE's samples are all inside."""
NOTE_ON_CORRECTED = """\
`sample_batched(({num},), x)`, {observations} observations. The three posteriors take
turns (NPE, flow, corrected, NPE, ...). The corrected posterior is
`trainer.build_posterior(sample_with="energy")`. Ratios of times are taken within a
round: median (lowest to highest)."""


def sampling(case: Case, effort: Effort) -> str:
    """Compare the rates at which posteriors are sampled."""
    trainers = (case.npe(), case.jnpe())
    for trainer in trainers:
        with max_num_epochs_expected():
            trainer.train(max_num_epochs=effort.num_training_epochs)
    posteriors = [trainer.build_posterior() for trainer in trainers]
    corrected = trainers[1].build_posterior(sample_with="energy")
    _, x = case.task.simulate(effort.num_observations, case.seed + 1)
    x = x.to(case.device)
    few = effort.num_samples // 100
    requests: dict[str, tuple[int, Callable[[Any], Any]]] = {
        f"`sample(({effort.num_samples},), x=x_o)`": (
            effort.num_samples,
            lambda posterior: posterior.sample(
                (effort.num_samples,), x=x[:1], show_progress_bars=False
            ),
        ),
        f"`sample_batched(({few},), x)`, {len(x)} observations": (
            few * len(x),
            lambda posterior: posterior.sample_batched(
                (few,), x=x, show_progress_bars=False, reject_outside_prior=False
            ),
        ),
    }
    lines = []
    for name, (num, request) in requests.items():
        npe, jnpe = (
            partial(seconds, partial(request, posterior), case.device)
            for posterior in posteriors
        )
        result = compare(npe, jnpe, effort.rounds)
        rates = [f"{num / time:,.0f}" for time in (result.npe, result.jnpe)]
        lines.append([name, *rates, result])
    return section(
        "Sampling the posterior",
        NOTE.format(
            epochs=effort.num_training_epochs,
            simulations=f"{case.num_simulations:,}",
            dim=case.dim,
        ),
        "\n\n".join(
            [
                table(["request", "NPE, 1/s", "JNPE, 1/s", "ratio of times"], lines),
                _corrected_sampling([*posteriors, corrected], case, effort),
            ]
        ),
    )


def _corrected_sampling(posteriors: list[Any], case: Case, effort: Effort) -> str:
    """Compare NPE, JNPE's flow, and the flow corrected by the energy, in turn."""
    npe, flow, corrected = posteriors
    num = effort.num_corrected_samples
    _, x = case.task.simulate(effort.num_corrected_observations, case.seed + 2)
    x = x.to(case.device)
    draws = (
        partial(npe.sample_batched, reject_outside_prior=False),
        flow.sample_batched,
        corrected.sample_batched,
    )
    rounds = [
        [
            seconds(partial(draw, (num,), x=x, show_progress_bars=False), case.device)
            for draw in draws
        ]
        for _ in range(effort.rounds)
    ]
    times = [list(of_one) for of_one in zip(*rounds, strict=True)]
    rates = [f"{num * len(x) / median(of_one):,.0f}" for of_one in times]
    to_npe, to_flow = (
        compare(iter(first).__next__, iter(second).__next__, effort.rounds)
        for first, second in pairwise(times)
    )
    return "\n\n".join(
        [
            NOTE_ON_CORRECTED.format(num=num, observations=len(x)),
            table(
                ["posterior", "1/s", "ratio of times", "goal"],
                [
                    ["NPE", rates[0], "", ""],
                    ["JNPE, flow", rates[1], f"{to_npe} of NPE's", _goal(to_npe, 1)],
                    [
                        "JNPE, corrected",
                        rates[2],
                        f"{to_flow} of the flow's",
                        _goal(to_flow, 5),
                    ],
                ],
            ),
        ]
    )


def _goal(result: Comparison, most: float) -> str:
    return f"at most {most}: {'met' if result.ratio <= most else 'missed'}"
