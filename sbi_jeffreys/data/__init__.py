"""Simulations as they are given, kept without copies, and cut into batches."""
