"""Figures of training, rounds, agreement, calibration and samples.

Each function returns a matplotlib `Figure` that pyplot does not know. Save it with
`figure.savefig(path)`, or show it as the last line of a notebook's cell. It needs no
display and no closing.
"""

from sbi_jeffreys.plots.agreement import plot_agreement
from sbi_jeffreys.plots.calibration import plot_coverage, plot_ranks, plot_tarp
from sbi_jeffreys.plots.corner import plot_corner
from sbi_jeffreys.plots.diagnosis import plot_diagnosis
from sbi_jeffreys.plots.rounds import plot_narrowing, plot_rounds
from sbi_jeffreys.plots.samples import plot_densities, plot_forest, plot_predictive
from sbi_jeffreys.plots.training import plot_training

__all__ = [
    "plot_agreement",
    "plot_corner",
    "plot_coverage",
    "plot_densities",
    "plot_diagnosis",
    "plot_forest",
    "plot_narrowing",
    "plot_predictive",
    "plot_ranks",
    "plot_rounds",
    "plot_tarp",
    "plot_training",
]
