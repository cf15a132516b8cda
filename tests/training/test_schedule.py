"""The factors of the learning rates: by hand, and as functions of the epoch alone."""

from math import cos, pi

import pytest

from sbi_jeffreys.training.schedule import Cycles, warm_cosine


@pytest.mark.parametrize(
    ("position", "length", "warm_up", "factor"),
    [
        (0, 40, 5, 0.2),
        (3, 40, 5, 0.8 * (1 + cos(3 * pi / 40)) / 2),
        (4, 40, 5, (1 + cos(pi / 10)) / 2),
        (20, 40, 5, 0.5),
        (39, 40, 5, (1 - cos(pi / 40)) / 2),
        (0, 1, 5, 0.2),
        (1, 3, 1, 0.75),
    ],
)
def test_factor_at_a_position_by_hand(position, length, warm_up, factor):
    assert warm_cosine(position, length, warm_up) == pytest.approx(factor, abs=1e-15)


def test_cycles_double():
    cycles = Cycles(10)
    assert [cycles.end(epoch) for epoch in (0, 9, 10, 29, 30, 69, 70)] == [
        *(10, 10, 30, 30, 70, 70, 150)
    ]


def test_ends_of_cycles_are_those_of_their_epochs():
    cycles = Cycles(10)
    assert [cycles.ends(num) for num in (1, 2, 3, 4)] == [10, 30, 70, 150]


def test_each_cycle_has_the_factors_of_the_first_stretched():
    cycles, start = Cycles(10), 0
    for length in (10, 20, 40):
        got = [cycles.factor(start + position) for position in range(length)]
        want = [
            min(1, (position + 1) / 5) * (1 + cos(pi * position / length)) / 2
            for position in range(length)
        ]
        assert got == pytest.approx(want, abs=1e-15)
        start += length


def test_a_factor_depends_on_the_epoch_alone():
    """It does not matter which epochs were asked for before."""
    forward, backward = Cycles(3), Cycles(3)
    epochs = range(60)
    wanted = {epoch: forward.factor(epoch) for epoch in epochs}
    assert {epoch: backward.factor(epoch) for epoch in reversed(epochs)} == wanted
    assert {epoch: Cycles(3).factor(epoch) for epoch in epochs} == wanted


@pytest.mark.parametrize(
    ("num", "first"),
    [(0, 50), (60, 50), (250, 50), (1000, 25), (4000, 12), (16_000, 10), (10**7, 10)],
)
def test_few_simulations_are_seen_more_often(num, first):
    assert Cycles.of(num) == Cycles(first)
