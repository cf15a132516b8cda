"""Check and compare posteriors of any kind, and export them to arviz."""

from sbi_jeffreys.diagnostics.calibration import calibrate
from sbi_jeffreys.diagnostics.comparison import Comparison, compare
from sbi_jeffreys.diagnostics.diagnose import Diagnosis, diagnose
from sbi_jeffreys.diagnostics.inference_data import to_inference_data
from sbi_jeffreys.diagnostics.ranks import Calibration

__all__ = [
    "Calibration",
    "Comparison",
    "Diagnosis",
    "calibrate",
    "compare",
    "diagnose",
    "to_inference_data",
]
