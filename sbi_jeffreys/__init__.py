"""Constrained Jeffreys posterior estimation for the `sbi` toolkit."""

from sbi_jeffreys.energy import ConditionalEnergy, LogRatioNet
from sbi_jeffreys.flow import ConditionalFlow, build_spline_flow, rsample_and_log_prob
from sbi_jeffreys.inference import JNPE, register

__all__ = [
    "JNPE",
    "ConditionalEnergy",
    "ConditionalFlow",
    "LogRatioNet",
    "build_spline_flow",
    "register",
    "rsample_and_log_prob",
]
__version__ = "0.1.0"
