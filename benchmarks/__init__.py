"""Benchmarks: commands that measure the method beside sbi's NPE and write a table."""
