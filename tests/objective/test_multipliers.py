import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from benchmarks.paper import duality
from sbi_jeffreys.objective.multipliers import (
    ConstrainedMultipliers,
    EntropyReference,
    FixedMultipliers,
    ResilientMultipliers,
)


@given(
    st.floats(-0.5, 2.0), st.floats(0.1, 2.0), st.floats(0.5, 2.0), st.floats(0.01, 0.2)
)
@settings(max_examples=50, deadline=None)
def test_rest_at_a_value_proportional_to_the_divergence(d, slack, cost, step):
    multipliers = ResilientMultipliers(slack, cost, step, bounds=(0.0, 100.0))
    divergences = torch.tensor([d, 0.0, -slack])
    for _ in range(int(20 * cost / step)):
        multipliers.update(divergences)
    expected = cost * (divergences + slack)
    torch.testing.assert_close(
        multipliers.values, expected.clamp(min=0), atol=1e-4, rtol=1e-4
    )
    if d > -slack:
        assert multipliers.relaxation[0].item() == pytest.approx(d, abs=1e-3)


def test_one_step_is_the_equation():
    multipliers = ResilientMultipliers(slack=0.5, relaxation_cost=2.0, step_size=0.1)
    divergences = torch.tensor([3.0, 0.2, -0.4])
    before = multipliers.values.clone()
    multipliers.update(divergences)
    torch.testing.assert_close(
        multipliers.values, before + 0.1 * (divergences + 0.5 - before / 2.0)
    )


def test_each_divergence_has_its_own_slack():
    one, other = ResilientMultipliers((0.2, 1.0, 0.5)), ResilientMultipliers(0.5)
    divergences = torch.tensor([-0.2, 0.3, -0.1])
    for _ in range(2000):
        one.update(divergences)
        other.update(divergences)
    torch.testing.assert_close(one.values, torch.tensor([0.05, 1.3, 0.4]))
    torch.testing.assert_close(other.values, torch.tensor([0.3, 0.8, 0.4]))


def test_bounds_hold():
    multipliers = ResilientMultipliers(bounds=(0.05, 3.0), step_size=1.0)
    multipliers.update(torch.tensor([100.0, -100.0, 0.0]))
    assert multipliers.values.tolist() == pytest.approx([3.0, 0.05, 1.0])


def test_primal_and_dual_optimum_of_a_convex_problem():
    """D_i(φ) = (φ − a_i)² / 2, which can't all be zero. At the saddle point
    Σ λ_i (φ − a_i) = 0 with λ_i = α (D_i + κ), a root in one dimension."""
    targets = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    slack, cost = 0.3, 0.7

    def stationarity(phi):
        weights = cost * ((phi - targets) ** 2 / 2 + slack)
        return float((weights * (phi - targets)).sum())

    solution = brentq(stationarity, 0.0, 4.0)
    multipliers = ResilientMultipliers(slack, cost, 0.05, bounds=(0.0, 100.0))
    multipliers.values = multipliers.values.double()
    phi = torch.tensor(3.5, dtype=torch.float64)
    for _ in range(4000):
        divergences = (phi - targets) ** 2 / 2
        phi = phi - 0.02 * (multipliers.values * (phi - targets)).sum()
        multipliers.update(divergences)
    assert phi.item() == pytest.approx(solution, abs=1e-8)
    optimal = cost * ((solution - targets) ** 2 / 2 + slack)
    torch.testing.assert_close(multipliers.values, optimal, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", duality.CONVEX)
def test_strong_duality_on_convex_problems(name):
    """P, L and the dual value all end at the least primal value, which scipy finds."""
    problem, multipliers = duality.CONVEX[name], duality.new_multipliers()
    path = problem.path(0, 3000, multipliers)
    least = problem.least_primal(multipliers)
    first, last = path[0], path[-1]
    assert first.lagrangian.primal_value - first.dual > 0.01
    for point in path:  # weak duality, up to the tolerance of scipy's minimum
        assert point.dual <= least + 1e-9
        assert point.lagrangian.primal_value >= least - 1e-9
    for value in (last.lagrangian.primal_value, last.lagrangian.value, last.dual):
        assert float(value) == pytest.approx(least, abs=1e-6)
    assert last.lagrangian.violations.abs().max() < 1e-3


def test_the_multiplier_gap_vanishes_where_nothing_is_trained():
    """It is no evidence of a saddle point: the dual value stays below."""
    problem, multipliers = duality.CONVEX["numbers"], duality.new_multipliers()
    d = problem.divergences(torch.tensor([3.0, 2.0], dtype=torch.float64))
    for _ in range(3000):
        multipliers.update(d)
    found = multipliers.lagrangian(d)
    assert found.multiplier_gap < 1e-6
    assert found.primal_value - problem.dual(multipliers) > 1


def test_the_gaps_vanish_where_a_bound_is_reached():
    """Huber's function: with multipliers of at most 0.3, constraints stay violated."""
    problem, multipliers = duality.CONVEX["numbers"], duality.new_multipliers(0.3)
    last = problem.path(0, 3000, multipliers)[-1]
    assert multipliers.values.max() == pytest.approx(0.3)
    assert last.lagrangian.violations.max() > 0.01
    assert last.lagrangian.multiplier_gap < 1e-12
    assert float(last.lagrangian.primal_value) == pytest.approx(last.dual, abs=1e-9)


@given(
    st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    st.lists(st.floats(0.05, 3), min_size=3, max_size=3),
    st.floats(0.1, 2),
    st.floats(0.2, 2),
)
@settings(max_examples=100, deadline=None)
def test_the_gap_is_never_negative_and_a_square_inside_the_bounds(d, values, slack, cost):
    multipliers = ResilientMultipliers(slack, cost)
    multipliers.values = torch.tensor(values)
    found = multipliers.lagrangian(torch.tensor(d))
    assert found.multiplier_gap >= 0
    answer = cost * (torch.tensor(d) + slack)
    if ((answer > 0.05) & (answer < 3)).all():
        square = cost / 2 * found.violations.square().sum()
        torch.testing.assert_close(found.multiplier_gap, square, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_plain_ascent_adds_up_violations_and_has_no_bound_but_the_least(least):
    multipliers = ConstrainedMultipliers((least, 0.5, least), step_size=0.02)
    assert multipliers.values.tolist() == [1, 0.5, 1]
    multipliers.update(torch.tensor([torch.inf, 1.0, 1.0]))
    assert multipliers.values.tolist() == [1, 0.5, 1]
    for _ in range(200):
        multipliers.update(torch.tensor([1.0, 7.0, -1.0]))
    torch.testing.assert_close(multipliers.values, torch.tensor([5.0, 0.5, least]))
    report = multipliers.report(torch.tensor([1.0, 7.0, -1.0]))
    assert report == {"constraint_violations": [1, 0, -1]}


def test_plain_ascent_solves_a_constrained_problem():
    """min ω φ² / 2 subject to D1 = (φ − 3)² / 2 − 2 ≤ 0 and D3 = −1: φ = 1, where
    ω φ = λ (3 − φ), so λ = ω / 2; and D3, which is slack, keeps its least weight."""
    weight = 0.4
    multipliers = ConstrainedMultipliers((0.0, weight, 0.1), step_size=0.05)
    multipliers.values = multipliers.values.double()
    multipliers.weights = multipliers.weights.double()
    phi = torch.tensor(2.0, dtype=torch.float64)
    for _ in range(5000):
        first, second, _ = multipliers.values
        phi = phi - 0.05 * (first * (phi - 3) + second * phi)
        one = (phi - 3).square() / 2 - 2
        multipliers.update(torch.stack([one, phi.square() / 2, one.new_tensor(-1.0)]))
    assert phi.item() == pytest.approx(1.0, abs=1e-6)
    wanted = torch.tensor([weight / 2, weight, 0.1], dtype=torch.float64)
    torch.testing.assert_close(multipliers.values, wanted, atol=1e-6, rtol=0)


def test_fixed_weights_stay():
    multipliers = FixedMultipliers((1.0, 0.5, 2.0))
    multipliers.update(torch.tensor([10.0, 10.0, 10.0]))
    assert multipliers.values.tolist() == [1.0, 0.5, 2.0]
    assert multipliers.report(torch.ones(3)) == {}


def test_entropy_reference_is_the_lowest_held_out_loss():
    reference = EntropyReference()
    assert not reference.subtract(torch.ones(3)).isfinite().all()
    for loss in (2.0, 1.0, 1.5):
        reference.update(loss)
    assert reference.value == 1.0
    terms = reference.subtract(torch.tensor([1.5, 0.3, 0.2]))
    assert terms.tolist() == pytest.approx([0.5, 0.3, -0.8])
