"""Posteriors of the flow and of the energy, with the interface of sbi's posteriors."""
