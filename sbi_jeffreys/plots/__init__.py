"""Figures of training, agreement and calibration, and of samples by way of arviz.

All return a matplotlib `Figure` that is not one of pyplot's: `figure.savefig(path)` or,
as the last line of a notebook's cell, the figure itself shows it. None needs a display,
and there is nothing to close.
"""

from sbi_jeffreys.plots.agreement import plot_agreement
from sbi_jeffreys.plots.calibration import plot_coverage, plot_ranks, plot_tarp
from sbi_jeffreys.plots.samples import plot_densities, plot_forest, plot_predictive
from sbi_jeffreys.plots.training import plot_training

__all__ = [
    "plot_agreement",
    "plot_coverage",
    "plot_densities",
    "plot_forest",
    "plot_predictive",
    "plot_ranks",
    "plot_tarp",
    "plot_training",
]
