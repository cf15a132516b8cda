"""Time and memory of JNPE beside sbi's NPE, one part a module."""
