"""How accurate posteriors are: C2ST, calibration and test NLL."""
