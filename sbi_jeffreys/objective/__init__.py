"""The constrained Jeffreys objective: divergences, normalisers, multipliers."""
