"""Rounds: the posterior for one observation from a fixed number of simulations."""

from sbi_jeffreys.rounds.record import Round, Rounds
from sbi_jeffreys.rounds.run import run_rounds

__all__ = ["Round", "Rounds", "run_rounds"]
