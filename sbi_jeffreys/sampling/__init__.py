"""Draws and their importance weights."""
