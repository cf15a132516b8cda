"""Record what seeded trainings give, with whichever version is installed.

    python record.py OUTPUT

Only public names are used, so that the script runs with old versions, too. It is called
by `python -m tests.unchanged`.
"""

import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Gamma, Independent

from sbi_jeffreys import JNPE, JeffreysDensityEstimator

NUM_SIMULATIONS, NUM_TEST, NUM_SAMPLES = 300, 100, 500
EPOCHS = {"stop_after_epochs": 12, "max_num_epochs": 30}


def shifted(theta: Tensor) -> Tensor:
    """A location with noise, and an entry that tells nothing."""
    noise = 0.3 * torch.randn(len(theta), 3)
    return torch.cat([theta, theta.prod(-1, keepdim=True)], -1) + noise


def counts(theta: Tensor) -> Tensor:
    """Positive, skewed entries, in proportion to rates."""
    rates = torch.stack([theta[:, 0], theta.sum(-1), theta[:, 1]], -1)
    return rates * (0.4 * torch.randn(len(theta), 3)).exp()


TASKS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "interval": (BoxUniform(-torch.ones(2), torch.ones(2)), shifted),
    "half_line": (Independent(Gamma(torch.full((2,), 2.0), 1.0), 1), counts),
}


def record_task(name: str, with_pool: bool) -> dict[str, Any]:
    """Train on a task, and return summary, samples, densities and agreement.

    Without the pool, simulations have a calibration kernel, for which the energy is that
    of its networks alone.
    """
    prior, simulator = TASKS[name]
    torch.manual_seed(1)
    theta, test_theta = prior.sample((NUM_SIMULATIONS,)), prior.sample((NUM_TEST,))
    x, test_x = simulator(theta), simulator(test_theta)
    trainer = JNPE(prior, show_progress_bars=False)
    kernel = None if with_pool else (lambda x: torch.ones(len(x), device=x.device))
    trainer.append_simulations(theta[:200], x[:200]).append_simulations(
        theta[200:], x[200:]
    )
    trainer.train(calibration_kernel=kernel, **EPOCHS)
    if not with_pool:
        more = {**EPOCHS, "max_num_epochs": 34}
        trainer.train(calibration_kernel=kernel, resume_training=True, **more)
    x_o = test_x[:2]
    torch.manual_seed(2)
    latest, energy = trainer.latest.given(x_o)
    draws, log_prob = latest.rsample_and_log_prob(50)
    results = {
        "summary": {k: torch.tensor(v) for k, v in trainer.summary.items() if len(v)},
        "latest": {"draws": draws, "log_prob": log_prob, "energy": energy(draws)},
    }
    del results["summary"]["epoch_durations_sec"]
    for kind in ("direct", "energy"):
        posterior = trainer.build_posterior(sample_with=kind)
        again = pickle.loads(pickle.dumps(posterior))
        torch.manual_seed(3)
        options = {"num_normalizer_samples": 500} if kind == "energy" else {}
        results[kind] = {
            "nll": -posterior.log_prob_batched(test_theta[None], test_x, **options)[0],
            "samples": posterior.sample(
                (NUM_SAMPLES,), x=x_o[:1], show_progress_bars=False
            ),
            "batched": posterior.sample_batched(
                (100,), x=test_x[:20], show_progress_bars=False
            ),
        }
        torch.manual_seed(3)
        again.log_prob_batched(test_theta[None], test_x, **options)
        same = again.sample((NUM_SAMPLES,), x=x_o[:1], show_progress_bars=False)
        assert torch.equal(same, results[kind]["samples"]), "pickling changes samples"
        report = posterior.agreement(test_x[:5], num_samples=500)
        results[kind]["agreement"] = {
            name: getattr(report, name)
            for name in ("ess", "pareto_k", "log_z", "log_z_se", "x_p_value")
        }
        results[kind]["verdicts"] = report.verdicts
    torch.manual_seed(4)
    results["several"] = {
        "samples": posterior.sample((200,), x=test_x[:4], show_progress_bars=False),
        "log_z": torch.stack(posterior.log_evidence_ratio(test_x[:4], 1000, True)),
    }
    return results


def record_density() -> dict[str, Any]:
    """Fit a density without x."""
    torch.manual_seed(5)
    samples = torch.randn(400, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    estimator = JeffreysDensityEstimator(show_progress_bars=False)
    estimator.fit(samples, **EPOCHS)
    torch.manual_seed(6)
    points = torch.randn(100, 2)
    return {
        "log_prob": estimator.log_prob(points),
        "energy": estimator.proxy_log_prob(points),
        "samples": estimator.sample((100,)),
    }


def main(output: str) -> None:
    """Record everything into a file that torch reads."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = {"density": record_density()}
    for name in TASKS:
        results[f"{name}, networks alone"] = record_task(name, with_pool=False)
        results[f"{name}, pool"] = record_task(name, with_pool=True)
    torch.save(results, output)


if __name__ == "__main__":
    main(sys.argv[1])
