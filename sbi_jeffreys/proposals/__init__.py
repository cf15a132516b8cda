"""What simulations of several rounds were drawn from."""
