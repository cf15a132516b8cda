"""Simulators with a prior, observations and reference posteriors."""
