"""The primal-dual step, the loop around it, and what surrounds the loop."""
