"""The agreement of flow and energy against its closed form."""

import math

import pytest
import torch

from sbi_jeffreys.objective.agreement import agreement
from tests.closed_forms import GaussianFlow, QuadraticEnergy, kl_flow_energy


def test_agreement_against_the_exact_divergence():
    torch.manual_seed(0)
    flow, energy = GaussianFlow(0.2, -0.2), QuadraticEnergy(1.2, 0.1, 0.4)
    x = torch.zeros(400, 2, dtype=torch.float64)
    draws, log_p = flow.sample_and_log_prob((2000,), x)
    result = agreement(log_p, energy(draws, x))
    for got, want in (
        (result.kl_flow_energy, kl_flow_energy(flow, energy, 2)),
        (result.log_z, energy.log_z(2)),
    ):
        error = got.std().item() / math.sqrt(len(got))
        assert got.mean().item() == pytest.approx(want.item(), abs=5 * error + 1e-3)
    assert ((result.ess > 0) & (result.ess <= 1)).all()
