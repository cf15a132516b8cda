"""The constrained Jeffreys objective: divergences, normalisers of log Z, multipliers."""
