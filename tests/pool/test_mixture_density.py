"""Mixtures of Gaussians: how many components errors get."""

import numpy as np
import pytest
import torch

from sbi_jeffreys.pool.mixture_density import best_mixture


def test_heavy_tailed_errors_get_components():
    """Half of the errors have a variance of 1, and half of them 0.01."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 2, generator=generator).double()
    narrow = torch.rand(2000, 1, generator=generator) < 0.5
    fit = best_mixture(torch.where(narrow, 0.1, 1.0) * noise)
    assert fit.n_components == 2
    variances = sorted(float(np.trace(c)) / 2 for c in fit.covariances_)
    assert variances == pytest.approx([0.01, 1.0], rel=0.1)  # 3 standard errors
    assert fit.weights_ == pytest.approx([0.5, 0.5], abs=0.04)


def test_gaussian_errors_get_one():
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(1000, 4, generator=generator).double()
    assert best_mixture(errors).n_components == 1
