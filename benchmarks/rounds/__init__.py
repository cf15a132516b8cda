"""One observation and a fixed number of simulations: the command `rounds`."""
