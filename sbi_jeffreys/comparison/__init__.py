"""Posteriors of any kind side by side: draws for arviz, tables, calibration."""

from sbi_jeffreys.comparison.calibration import calibrate
from sbi_jeffreys.comparison.inference_data import to_inference_data
from sbi_jeffreys.comparison.ranks import Calibration
from sbi_jeffreys.comparison.tables import Comparison, compare

__all__ = ["Calibration", "Comparison", "calibrate", "compare", "to_inference_data"]
