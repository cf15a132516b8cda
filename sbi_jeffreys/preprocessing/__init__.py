"""Maps to the space in which networks see parameters and simulations."""
