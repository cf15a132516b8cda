"""Training of a flow and an energy together: the step, the loop, early stopping."""
