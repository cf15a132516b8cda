"""The rule for entries that do not vary, at its edge and in any unit."""

import pytest
import torch

from sbi_jeffreys.preprocessing.scaling import location_and_scale, varies


@pytest.mark.parametrize("constant", [0.1, 1.0, 1000.1, -3e7])
def test_rounding_noise_on_a_constant_is_no_variation(constant):
    """A few units in the last place of single precision, in single or double."""
    value = torch.tensor(constant)
    up = torch.nextafter(value, torch.tensor(torch.inf))
    two_up = torch.nextafter(up, torch.tensor(torch.inf))
    rows = torch.stack([value, up, two_up, value]).unsqueeze(-1)
    for values in (rows, rows.double()):
        assert not varies(values).any()
        assert location_and_scale(values)[1] == 1


def test_the_edge_is_a_millionth_of_the_largest_value():
    values = torch.ones(100, 2, dtype=torch.float64)
    values[7] += torch.tensor([0.99e-6, 1.01e-6])
    assert varies(values).tolist() == [False, True]
    assert varies(values, size=2.0).tolist() == [False, False]
    assert varies(values, size=0.5).tolist() == [True, True]


@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1e9, 1e30])
def test_scales_are_in_the_units_of_the_values(unit):
    values = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) + 3.0
    values[:, 1] = 0.1
    loc, scale = location_and_scale(values * unit)
    assert varies(values * unit).tolist() == [True, False]
    torch.testing.assert_close(loc / unit, values.mean(0))
    torch.testing.assert_close(scale[0] / unit, values[:, 0].std())
    assert scale[1] == 1


def test_missing_numbers_are_left_out():
    values = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 4.0], [8.0, 5.0, 9.0]])
    with_missing = torch.cat([values, torch.full((2, 3), torch.nan)])
    with_missing[4, 1] = torch.inf
    for given in (with_missing, with_missing.flip(0)):
        loc, scale = location_and_scale(given)
        assert loc.tolist() == pytest.approx([4.0, 5.0, 5.0])
        assert scale.tolist() == pytest.approx([13**0.5, 1.0, 13**0.5])
    loc, scale = location_and_scale(torch.full((4, 2), torch.nan))
    assert loc.tolist() == [0, 0]
    assert scale.tolist() == [1, 1]


def test_sums_beyond_single_precision_do_not_overflow():
    values = torch.tensor([[3e38], [2.5e38], [2e38], [-3e38]])
    loc, scale = location_and_scale(values)
    assert loc.item() == pytest.approx(1.125e38)
    assert scale.item() == pytest.approx(values.double().std().item(), rel=1e-6)


def test_zeros_nan_and_single_rows_do_not_vary():
    values = torch.zeros(10, 3, 2)
    values[4, 1] = torch.nan
    assert varies(values).shape == (3, 2)
    assert not varies(values).any()
    assert bool((location_and_scale(torch.randn(1, 3))[1] == 1).all())
