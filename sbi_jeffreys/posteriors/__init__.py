"""Posteriors of the flow and of the energy, as sbi's."""
