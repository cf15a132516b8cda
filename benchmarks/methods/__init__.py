"""The methods that are compared: sbi's own and JNPE."""
