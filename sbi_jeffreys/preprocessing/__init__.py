"""Maps from parameters and simulations to what the networks see."""
