"""Estimates of log Z against closed forms."""

import math

import pytest
import torch

from sbi_jeffreys.objective.normalizers import LOG_WEIGHT_CAP, log_normalizer
from tests.closed_forms import GaussianFlow, QuadraticEnergy


def test_monte_carlo_error_of_log_z_falls_with_the_root_of_k():
    torch.manual_seed(0)
    flow, energy = GaussianFlow(), QuadraticEnergy(1.5, 0.3, 0.7)
    x = torch.zeros(4000, 1, dtype=torch.float64)
    sizes = torch.tensor([16.0, 64.0, 256.0])
    errors = []
    for size in sizes.int().tolist():
        draws, log_p = flow.sample_and_log_prob((size,), x)
        log_z = log_normalizer(energy(draws, x) - log_p, x[:, 0], "importance")
        errors.append((log_z - energy.log_z(1)).square().mean().sqrt())
    slope = torch.linalg.lstsq(
        torch.stack([sizes.log(), torch.ones(3)], -1).double(),
        torch.stack(errors).log().unsqueeze(-1),
    ).solution[0]
    # Each error has a relative standard error of 1/sqrt(8000), the slope one of 0.006.
    assert slope.item() == pytest.approx(-0.5, abs=0.02)


def test_the_generalized_normalizer_keeps_a_gradient_beyond_its_cap():
    log_weights = torch.tensor([[LOG_WEIGHT_CAP + 40.0]], requires_grad=True)
    value = log_normalizer(log_weights, torch.zeros(1), "generalized")
    value.sum().backward()
    assert value.item() == pytest.approx(math.exp(LOG_WEIGHT_CAP) * 41 - 1, rel=1e-5)
    assert log_weights.grad.item() == pytest.approx(math.exp(LOG_WEIGHT_CAP), rel=1e-5)


def test_ranking_bounds_the_loss_of_the_energy():
    """−f + log Z ≥ −log p − log(K + 1): no gap can be widened without end."""
    log_weights = torch.full((4, 1), -1e4)
    f_data, log_p_data = torch.tensor([1e4]), torch.tensor([-2.0])
    log_z = log_normalizer(log_weights, f_data - log_p_data, "ranking")
    assert (-f_data + log_z).item() == pytest.approx(2.0 - math.log(5), abs=1e-2)


def test_an_unknown_normalizer_is_named():
    with pytest.raises(ValueError, match="normalizer"):
        log_normalizer(torch.zeros(2, 1), torch.zeros(1), "softmax")
