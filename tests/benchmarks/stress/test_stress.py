"""The command `stress`: problems are drawn by their seed, and nothing wrong is missed."""

import warnings

import pandas as pd
import pytest
import torch

from benchmarks.stress import page, problems, trainings
from sbi_jeffreys.posteriors.energy_posterior import EnergyPosterior

SMALL = problems.Problem("box", "gaussian", 1, 40, 1e-3)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(trainings, "draw", lambda seed: SMALL)
    monkeypatch.setattr(trainings, "NUM_EPOCHS", 1)


def test_seeds_draw_problems_of_all_kinds_within_the_ranges():
    drawn = [problems.draw(seed) for seed in range(500)]
    assert drawn == [problems.draw(seed) for seed in range(500)]
    assert {each.prior for each in drawn} == set(problems.PRIORS)
    assert {each.simulator for each in drawn} == set(problems.SIMULATORS)
    assert all(20 <= each.num_simulations <= 2000 for each in drawn)
    assert all(1e-4 <= each.learning_rate <= 5e-2 for each in drawn)


@pytest.mark.parametrize("simulator", problems.SIMULATORS)
@pytest.mark.parametrize("prior", problems.PRIORS)
def test_all_problems_can_be_simulated(prior, simulator):
    torch.manual_seed(0)
    problem = problems.Problem(prior, simulator, 2, 40, 1e-3)
    _, theta, x = problem.simulate(50)
    assert len(theta) == len(x) == 50
    assert theta.isfinite().all()
    assert x.isfinite().all()


def test_a_training_without_a_fault_is_fine(small):
    assert trainings.measure(0).outcome == "fine"


def test_samples_outside_of_the_prior_and_no_numbers_are_found(small, monkeypatch):
    def give(value):
        def sample_batched(self, shape, x, **_):
            return torch.full((*shape, len(x), 1), value)

        monkeypatch.setattr(EnergyPosterior, "sample_batched", sample_batched)
        return trainings.measure(0).outcome

    assert give(2.0) == "samples of energy leave the prior"
    assert give(torch.nan) == "samples of energy are not finite numbers"


def test_errors_are_outcomes_and_those_that_say_when_are_told_apart(monkeypatch):
    def outcome_of(error, warning=None):
        def act(seed):
            if warning:
                warnings.warn(warning, stacklevel=1)
            if error:
                raise error
            return "fine"

        monkeypatch.setattr(trainings, "_outcome", act)
        return trainings.measure(0).outcome

    assert outcome_of(None) == "fine"
    assert (
        outcome_of(FloatingPointError("D1 became NaN or infinite at step 3 of epoch 1."))
        == "said"
    )
    assert (
        outcome_of(None, "The held-out D1 became nan in epoch 7. Training stopped.")
        == "said"
    )
    assert outcome_of(FloatingPointError("what")) == "FloatingPointError('what')"
    assert outcome_of(IndexError("where")) == "IndexError('where')"


def test_the_page_counts_outcomes_and_lists_what_went_wrong():
    rows = pd.DataFrame(
        [
            (0, "box", "counts", 40, 1e-3, "fine", "abc", "a machine"),
            (1, "box", "signs", 40, 1e-3, "said", "abc", "a machine"),
            (2, "gamma", "signs", 41, 1e-3, "IndexError('where')", "abc", "a machine"),
        ],
        columns=[*trainings.Row._fields, "measured_with"],
    )
    text = page.report(rows)
    assert "| box | 2 | 1 | 1 | 0 |" in text
    assert "| signs | 2 | 0 | 1 | 1 |" in text
    assert "| all | 3 | 1 | 1 | 1 |" in text
    assert "| 2 | gamma | signs | 41 | 0.001 | IndexError('where') |" in text
    assert "went wrong" not in page.report(rows[:2])
