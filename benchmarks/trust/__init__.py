"""What predicts the error of a posterior at an observation, where the error is known."""
