"""The share of the newest weights in their moving average."""

import pytest

from sbi_jeffreys.training.averaging import newest_share


def test_it_falls_to_that_of_the_long_run():
    assert [newest_share(n, 0.98) for n in (0, 9, 91)] == [1.0, 0.5, 0.09]
    assert newest_share(10_000, 0.98) == pytest.approx(0.02)
