"""Tables that compare posteriors: summaries, distances, scores on fresh simulations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sbi.inference.posteriors.base_posterior import NeuralPosterior

from sbi_jeffreys._arviz import is_inference_data, labelled_draws, summary
from sbi_jeffreys.diagnostics.calibration import fresh_simulations
from sbi_jeffreys.diagnostics.draws import INDEPENDENT
from sbi_jeffreys.diagnostics.inference_data import to_inference_data
from sbi_jeffreys.diagnostics.naming import ParameterNames
from sbi_jeffreys.diagnostics.observations import warn_if_not_amortised
from sbi_jeffreys.diagnostics.scores import (
    CLASSIFIERS,
    distances,
    held_out_scores,
    varies,
)
from sbi_jeffreys.sampling.random_state import random_state
from sbi_jeffreys.tables import as_html, as_text, digits

AGREEMENT = ("pareto_k", "ess", "kl_flow_energy")
COLUMNS = (
    "posterior",
    "num_draws",
    *CLASSIFIERS.values(),
    "sliced_wasserstein",
    "mmd_squared",
    "max_mean_shift",
    "mean_sd_ratio",
    *AGREEMENT,
    "coverage_50",
    "coverage_90",
    "nll",
    "nll_se",
)
FEWEST_DRAWS = 20
"""The classifiers need at least this many draws."""


@dataclass(frozen=True, eq=False)
class Comparison:
    r"""Two tables that describe and compare posteriors. Print it to read them.

    The table `parameters` has a row for each parameter and posterior:

    - `mean`, `sd`: mean and standard deviation of the draws, in the parameter's units.
    - `hdi_low`, `hdi_high`: bounds of the highest-density interval that holds a
      probability of `hdi_prob`, in the parameter's units.
    - `ess_bulk`: effective number of draws.
    - `r_hat`: rank-normalised split R̂, for Markov chains only.
    - `mean_shift`: difference from the reference's mean, in standard deviations of the
      reference. It needs a reference.
    - `sd_ratio`: standard deviation divided by the reference's. It needs a reference.

    The table `posteriors` has a row for each posterior. These columns are always there:

    - `posterior`: its name.
    - `num_draws`: number of draws that were compared.

    These columns need a reference:

    - `c2st_random_forest`, `c2st_mlp`: accuracy of this classifier in telling the draws
      from the reference, by `sbi`'s `c2st`. 0.5 is perfect and 1 is the worst. It depends
      on the classifier and on the number of draws.
    - `sliced_wasserstein`: mean Wasserstein-1 distance of random projections, in standard
      deviations of the reference.
    - `mmd_squared`: unbiased estimate of the squared maximum mean discrepancy, without
      unit. It can be negative by chance if the distributions are equal.
    - `max_mean_shift`: the largest |`mean_shift`| of all parameters.
    - `mean_sd_ratio`: geometric mean of `sd_ratio`. A posterior that is too narrow has a
      value below 1.

    These columns need a posterior with both flow and energy, see `AgreementReport`:

    - `pareto_k`: shape of the tail of the importance weights.
    - `ess`: effective sample size divided by the number of draws, 0 to 1.
    - `kl_flow_energy`: KL(p ‖ q) of flow and energy, in nats.

    These columns need fresh simulations:

    - `coverage_50`, `coverage_90`: fraction of central 50 % and 90 % intervals that
      contain the true parameter, averaged over parameters. A posterior that is too narrow
      has values below 0.5 and 0.9. For one parameter and N simulations, the standard
      error at level L is $\sqrt{L (1 - L) / N}$.
    - `nll`: mean of $-\log p(\theta | x)$ in nats. Lower is better.
    - `nll_se`: standard error of `nll`.

    A value that does not apply to a posterior is NaN.

    Attributes:
        parameters: Table with a row for each parameter and posterior.
        posteriors: Table with a row for each posterior.
        reference: Name of the reference, or None.
        hdi_prob: Probability in the highest-density intervals.
    """

    parameters: pd.DataFrame
    posteriors: pd.DataFrame
    reference: str | None
    hdi_prob: float

    def __str__(self) -> str:
        return as_text(self.parameters, self.posteriors)

    def _repr_html_(self) -> str:
        return as_html(self.parameters, self.posteriors)

    def to_markdown(self) -> str:
        """Return both tables in Markdown, with three significant digits.

        Raises:
            ImportError: If the package tabulate is not installed.
        """
        tables = (self.parameters, self.posteriors)
        try:
            return "\n\n".join(t.map(digits).to_markdown(index=False) for t in tables)
        except ImportError as error:
            raise ImportError(
                "`to_markdown` needs tabulate: pip install 'sbi_jeffreys[export]'."
            ) from error


def compare(
    posteriors: Any | Mapping[str, Any],
    x_o: ArrayLike | None = None,
    *,
    reference: str | None = None,
    theta: ArrayLike | None = None,
    x: ArrayLike | None = None,
    parameter_names: ParameterNames = None,
    num_samples: int = 2000,
    num_chains: int | None = None,
    num_posterior_samples: int = 200,
    classifiers: Sequence[str] = ("rf",),
    hdi_prob: float = 0.94,
    seed: int | None = None,
    show_progress_bars: bool = True,
) -> Comparison:
    """Compare posteriors given an observation, with each other or with a reference.

    Args:
        posteriors: Posteriors by name, or a single one. Each is a posterior of this
            package or `sbi`, or samples of shape `(N, D)` or `(chain, draw, D)`, or a
            result of `to_inference_data`.
        x_o: The observation, as in `to_inference_data`.
        reference: Name of the posterior to measure distances from, for example samples of
            MCMC.
        theta: Fresh parameters from the prior for coverage and NLL, shape `(N, D)`. They
            must not have been used in training.
        x: Simulations of `theta`, shape `(N, *x)`. Simulations with NaN or infinite
            entries are left out, with a warning.
        parameter_names: Names of the parameters, as in `to_inference_data`.
        num_samples: Draws from each posterior.
        num_chains: Number of chains, as in `to_inference_data`.
        num_posterior_samples: Draws for each fresh simulation.
        classifiers: Classifiers for C2ST: "rf" is a random forest, "mlp" a multilayer
            perceptron.
        hdi_prob: Probability in the highest-density intervals.
        seed: Makes the result reproducible. The random states of Python, NumPy and torch
            are restored afterwards.
        show_progress_bars: Whether to show progress.

    Returns:
        The two tables.

    Raises:
        TypeError: If something is not a posterior.
        ValueError: If an option is out of range, shapes do not fit, or the posteriors
            have different parameters.
    """
    if is_inference_data(posteriors) or not isinstance(posteriors, Mapping):
        posteriors = {"posterior": posteriors}
    _check_options(
        posteriors,
        reference,
        classifiers,
        hdi_prob,
        num_samples,
        num_posterior_samples,
    )
    fresh = None if theta is None and x is None else fresh_simulations(theta, x)
    if fresh is not None:
        warn_if_not_amortised(posteriors.values())
    data = {name: each for name, each in posteriors.items() if is_inference_data(each)}
    if len(data) < len(posteriors):
        data |= to_inference_data(
            {name: each for name, each in posteriors.items() if name not in data},
            x_o,
            num_samples=num_samples,
            num_chains=num_chains,
            parameter_names=parameter_names,
            seed=seed,
            show_progress_bars=show_progress_bars,
        )
    data = {name: data[name] for name in posteriors}
    labels, draws = _same_parameters(data)
    if fresh is not None and fresh[0].shape[1] != len(labels):
        raise ValueError(
            f"Expected `theta` of shape (N, {len(labels)}), as in the posteriors, got "
            f"{tuple(fresh[0].shape)}."
        )
    flat = {name: each.reshape(-1, len(labels)) for name, each in draws.items()}
    rows = []
    for name, posterior in posteriors.items():
        row: dict[str, Any] = {"posterior": name, "num_draws": len(flat[name])}
        if reference not in (None, name):
            rng = np.random.default_rng(seed)
            row |= distances(flat[reference], flat[name], classifiers, rng)
        if "sample_stats" in data[name]:
            attrs = data[name]["sample_stats"].attrs
            row |= {key: attrs[key] for key in AGREEMENT if key in attrs}
        if fresh is not None and isinstance(posterior, NeuralPosterior):
            with random_state(seed, stream=2):
                row |= held_out_scores(
                    posterior, *fresh, num_posterior_samples, show_progress_bars
                )
        rows.append(row)
    table = pd.DataFrame(rows)
    return Comparison(
        _parameter_table(data, labels, draws, reference, hdi_prob),
        table[[column for column in COLUMNS if column in table]],
        reference,
        hdi_prob,
    )


def _same_parameters(
    data: Mapping[str, Any],
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the parameters' labels, and draws `(chain, draw, P)` by posterior."""
    labelled = {name: labelled_draws(each) for name, each in data.items()}
    labels = next(iter(labelled.values()))[0]
    for name, (others, draws) in labelled.items():
        if others != labels:
            raise ValueError(
                f"Expected posteriors of the same parameters, got {labels} and, for "
                f"{name!r}, {others}."
            )
        num = draws.shape[0] * draws.shape[1]
        if num < FEWEST_DRAWS or not np.isfinite(draws).all():
            raise ValueError(
                f"Expected at least {FEWEST_DRAWS} finite draws of {name!r}, got {num} "
                f"draws with {(~np.isfinite(draws)).sum()} values that are not finite."
            )
    return labels, {name: draws for name, (_, draws) in labelled.items()}


def _parameter_table(
    data: Mapping[str, Any],
    labels: list[str],
    draws: Mapping[str, np.ndarray],
    reference: str | None,
    hdi_prob: float,
) -> pd.DataFrame:
    tables = {}
    for name, each in draws.items():
        table = pd.DataFrame({"parameter": labels, "posterior": name})
        tables[name] = table.assign(**summary(each, hdi_prob)._asdict())
        if data[name].attrs.get("sampler") == INDEPENDENT:
            tables[name]["r_hat"] = np.nan
    if reference is not None:
        known = tables[reference].copy()
        known_draws = draws[reference].reshape(-1, len(labels))
        scale = known["sd"].where(varies(known_draws), 1.0)
        for table in tables.values():
            table["mean_shift"] = (table["mean"] - known["mean"]) / scale
            table["sd_ratio"] = table["sd"] / scale
    # The index counts parameters, so rows of the same parameter become neighbours.
    return pd.concat(tables.values()).sort_index(kind="stable").reset_index(drop=True)


def _check_options(
    named: Mapping[str, Any],
    reference: str | None,
    classifiers: Sequence[str],
    hdi_prob: float,
    num_samples: int,
    num_posterior_samples: int,
) -> None:
    if not named:
        raise ValueError("Expected `posteriors` to name at least one, got none.")
    if reference is not None and reference not in named:
        raise ValueError(
            f"Expected `reference` to be one of {list(named)}, got {reference!r}."
        )
    if isinstance(classifiers, str) or not set(classifiers) <= set(CLASSIFIERS):
        raise ValueError(
            f"Expected `classifiers` among {list(CLASSIFIERS)}, got {classifiers!r}."
        )
    if not 0 < hdi_prob < 1:
        raise ValueError(f"Expected `hdi_prob` to be in (0, 1), got {hdi_prob}.")
    if num_samples < FEWEST_DRAWS:
        raise ValueError(
            f"Expected `num_samples` to be at least {FEWEST_DRAWS}, got {num_samples}."
        )
    if num_posterior_samples < 1:
        raise ValueError(
            "Expected `num_posterior_samples` to be at least 1, got "
            f"{num_posterior_samples}."
        )
