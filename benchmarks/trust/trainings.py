r"""One training a row: how well numbers predict its errors at observations.

The error at x is KL(exact posterior ‖ estimate), from draws of the exact posterior. A
number predicts it well if it finds the worst fifth of the observations (area under the
curve) and puts the observations in the right order (rank correlation).
"""

import warnings
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.report import commit
from benchmarks.rows import curve
from benchmarks.tasks.sbibm import TASKS
from benchmarks.trust.exact import EXACT
from sbi_jeffreys import JNPE

NUM_X, NUM_DRAWS, NUM_NORMALIZER_DRAWS = 200, 500, 2_000
TEST_SEED = 20_000

ESTIMATES = ("flow", "corrected")

NUMBERS = {
    "agreement": "KL(flow ‖ energy) of `agreement`",
    "ess": "ESS of `agreement`, negative",
    "pareto_k": "k̂ of `agreement`",
    "novelty": "p-value of x, negative",
    "refit": "KL(corrected ‖ corrected of a refit on half of the simulations)",
}
"""What may predict an error, and what the page calls it."""


class Row(NamedTuple):
    """One training.

    Attributes:
        task: Name of the task.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and trainings.
        kl_flow, kl_corrected: Mean errors in nats.
        large_flow, large_corrected: Shares of errors above 0.5 nats among the x at which
            flow and energy agree. NaN if there is no such x.
        areas_flow, areas_corrected: Areas under the curve, in the order of `NUMBERS`.
        ranks_flow, ranks_corrected: Rank correlations, in the same order.
        commit: Of the code.
    """

    task: str
    num_simulations: int
    seed: int
    kl_flow: float
    kl_corrected: float
    large_flow: float
    large_corrected: float
    areas_flow: str
    areas_corrected: str
    ranks_flow: str
    ranks_corrected: str
    commit: str


def measure(task: str, num_simulations: int, seed: int) -> Row:
    """Train on all simulations and on half of them, and measure.

    Args:
        task: Name of one of `EXACT`.
        num_simulations: Simulations for training and validation together.
        seed: Seed of simulations and trainings.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theta, x = TASKS[task].simulate(num_simulations, seed)
        posteriors = _trained(task, theta, x, seed)
        half = num_simulations // 2
        refit = _trained(task, theta[:half], x[:half], seed)["corrected"]
        _, x_test = TASKS[task].simulate(NUM_X, TEST_SEED)
        measured = _measures(task, posteriors, refit, x_test)
    return Row(task, num_simulations, seed, **measured, commit=commit())


def _trained(task: str, theta: Tensor, x: Tensor, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    trainer = JNPE(TASKS[task].prior, show_progress_bars=False)
    trainer.append_simulations(theta, x).train()
    corrected = trainer.build_posterior(sample_with="energy")
    return {"flow": trainer.build_posterior(), "corrected": corrected}


def _measures(
    task: str, posteriors: dict[str, Any], refit: Any, x: Tensor
) -> dict[str, Any]:
    torch.manual_seed(TEST_SEED)
    exact = EXACT[task].sample(NUM_DRAWS, x)
    log_exact = EXACT[task].log_prob(exact, x)
    corrected = posteriors["corrected"]
    errors = {
        "flow": (log_exact - posteriors["flow"].log_prob_batched(exact, x)).mean(0),
        "corrected": (log_exact - _log_prob(corrected, exact, x)).mean(0),
    }
    drawn = corrected.sample_batched((NUM_DRAWS,), x=x, show_progress_bars=False)
    change = _log_prob(corrected, drawn, x) - _log_prob(refit, drawn, x)
    report = corrected.agreement(x)
    numbers = {
        "agreement": report.kl_flow_energy,
        "ess": -report.ess,
        "pareto_k": report.pareto_k,
        "novelty": -report.x_p_value,
        "refit": change.mean(0),
    }
    agrees = torch.tensor(
        [v.startswith("flow and energy agree") for v in report.verdicts]
    )
    result: dict[str, Any] = {}
    for name, error in errors.items():
        areas, ranks = zip(*(how_well(n, error) for n in numbers.values()), strict=True)
        result[f"kl_{name}"] = float(error.mean())
        result[f"large_{name}"] = float((error[agrees] > 0.5).float().mean())
        result[f"areas_{name}"], result[f"ranks_{name}"] = curve(areas), curve(ranks)
    return result


def _log_prob(corrected: Any, theta: Tensor, x: Tensor) -> Tensor:
    return corrected.log_prob_batched(
        theta, x, num_normalizer_samples=NUM_NORMALIZER_DRAWS
    )


def how_well(numbers: Tensor, errors: Tensor) -> tuple[float, float]:
    """Return the area under the curve for the worst fifth, and the rank correlation."""
    numbers = numbers.nan_to_num()  # k̂ may be infinite
    worst = errors >= errors.quantile(0.8)
    area = roc_auc_score(worst.numpy(), numbers.numpy())
    return float(area), float(spearmanr(numbers.numpy(), errors.numpy()).statistic)
