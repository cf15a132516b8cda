"""Simpler models of the simulator, pooled with the energy's networks."""
