"""Where JNPE differs from NPE, by the start of the test's name, and why."""

EXPECTED_DIFFERENCES: dict[str, str] = {}
