"""Constrained Jeffreys posterior estimation for the `sbi` toolkit."""

from sbi_jeffreys.density import JeffreysDensityEstimator, PairDensity
from sbi_jeffreys.diagnostics import (
    Calibration,
    Comparison,
    Diagnosis,
    calibrate,
    compare,
    diagnose,
    to_inference_data,
)
from sbi_jeffreys.diagnostics.agreement import AgreementReport
from sbi_jeffreys.models.conditional import Conditional, condition_on
from sbi_jeffreys.models.energy import ConditionalEnergy
from sbi_jeffreys.models.flow import ConditionalFlow
from sbi_jeffreys.models.log_ratio import LogRatioNet
from sbi_jeffreys.models.spline_flow import build_spline_flow
from sbi_jeffreys.posteriors.energy_posterior import (
    EnergyPosterior,
    EnergyPosteriorParameters,
)
from sbi_jeffreys.proposals.fitted import FittedProposal
from sbi_jeffreys.rounds import Round, Rounds, run_rounds
from sbi_jeffreys.trainer import JNPE, register

__all__ = [
    "JNPE",
    "AgreementReport",
    "Calibration",
    "Comparison",
    "Conditional",
    "ConditionalEnergy",
    "ConditionalFlow",
    "Diagnosis",
    "EnergyPosterior",
    "EnergyPosteriorParameters",
    "FittedProposal",
    "JeffreysDensityEstimator",
    "LogRatioNet",
    "PairDensity",
    "Round",
    "Rounds",
    "build_spline_flow",
    "calibrate",
    "compare",
    "condition_on",
    "diagnose",
    "register",
    "run_rounds",
    "to_inference_data",
]
__version__ = "0.1.0"
