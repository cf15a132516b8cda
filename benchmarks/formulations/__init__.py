"""The command `formulations`: which problem flow and energy are trained to solve."""
