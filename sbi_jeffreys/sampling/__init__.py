"""Importance weights, resampling and sequential Monte Carlo."""
