"""The command `controls`: what each part of JNPE gives, beside sbi's NPE."""
