"""Against closed forms. Monte-Carlo estimates are held to five standard errors, which an
unbiased estimate exceeds with a probability below 1e-6."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from sbi_jeffreys.objective.agreement import agreement
from sbi_jeffreys.objective.divergences import jeffreys_divergences
from sbi_jeffreys.objective.normalizers import NORMALIZERS
from tests.closed_forms import GaussianFlow, QuadraticEnergy, kl_flow_energy


def pairs(batch=7, dim=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)


def divergences(flow, energy, theta, x, num_particles=64, normalizer="importance"):
    return jeffreys_divergences(
        flow.given(x), partial(energy, condition=x), theta, num_particles, normalizer
    )


def test_terms_are_exact_where_the_energy_is_the_flow_up_to_a_constant():
    theta, x = pairs()
    a = 4.0
    flow = GaussianFlow(0.3, -0.5 * math.log(a))
    energy = QuadraticEnergy(a, 0.3, c=1.7)
    terms = divergences(flow, energy, theta, x, num_particles=3)
    nll = -flow.log_prob(theta, x)
    torch.testing.assert_close(terms.kl_data_flow, nll)
    torch.testing.assert_close(terms.kl_flow_energy, torch.zeros_like(nll))
    torch.testing.assert_close(terms.kl_data_energy, nll)
    z = energy.log_z(2).exp()
    generalized = divergences(flow, energy, theta, x, 3, "generalized")
    expected = -energy(theta, x) + z - 1
    torch.testing.assert_close(generalized.kl_data_energy, expected)


@pytest.mark.parametrize("normalizer", ["importance", "generalized"])
def test_values_and_gradients_match_the_analytic_ones(normalizer):
    """log Z, D2 and all gradients, from 400 × 500 draws in float64."""
    torch.manual_seed(1)
    theta, x = pairs(batch=400, dim=1)
    flow = GaussianFlow(0.2, -0.1)
    # Z = 1 for the generalized KL, which is exact only there.
    energy = QuadraticEnergy(0.8, -0.1, c=0.5 * math.log(0.8 / (2 * math.pi)))
    terms = divergences(flow, energy, theta, x, 500, normalizer)

    kl = kl_flow_energy(flow, energy, 1)
    error = terms.kl_flow_energy.std().item() / math.sqrt(400)
    assert terms.kl_flow_energy.mean().item() == pytest.approx(kl.item(), abs=5 * error)
    nll = (-energy(theta, x)).mean() + energy.log_z(1)
    d3 = terms.kl_data_energy.mean().item()
    log_z_error = (terms.kl_data_energy + energy(theta, x)).std().item() / math.sqrt(400)
    assert d3 == pytest.approx(nll.item(), abs=5 * log_z_error + 1e-3)

    for estimate, exact, models in (
        (terms.kl_flow_energy, kl, (flow, energy)),
        (terms.kl_data_energy, nll, (energy,)),
    ):
        for model in models:
            for name, parameter in model.named_parameters():
                got = per_row_gradient(estimate, parameter)
                want = torch.autograd.grad(
                    exact, parameter, retain_graph=True, allow_unused=True
                )[0]
                want = torch.zeros(()) if want is None else want
                # log Z enters as Z − 1 in "generalized": d(Z − 1) = dlog Z at Z = 1, and
                # a shift c of f moves D3 by −1 + 1 = 0 in both.
                error = got.std().item() / math.sqrt(len(got))
                assert got.mean().item() == pytest.approx(
                    want.item(), abs=5 * error + 2e-3
                ), name


def per_row_gradient(values, parameter, num_chunks=20):
    """Gradients of the means of chunks, whose spread gives the standard error."""
    chunks = values.split(len(values) // num_chunks)
    return torch.stack(
        [
            torch.autograd.grad(chunk.mean(), parameter, retain_graph=True)[0]
            for chunk in chunks
        ]
    )


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_each_member_fits_the_data_and_the_flow_their_average(normalizer):
    theta, x = pairs()
    flow = GaussianFlow(0.1, 0.2)
    first, second = QuadraticEnergy(2.0, 0.3), QuadraticEnergy(0.5, -0.4, 0.7)
    mean = QuadraticEnergy(1.25, (2 * 0.3 - 0.5 * 0.4) / 2.5)

    def both(input, condition):
        return torch.stack([first(input, condition), second(input, condition)])

    def terms(energy):
        torch.manual_seed(0)
        return divergences(flow, energy, theta, x, 5, normalizer)

    together, alone, other, average = map(terms, (both, first, second, mean))
    expected = (alone.kl_data_energy + other.kl_data_energy) / 2
    torch.testing.assert_close(together.kl_data_energy, expected)
    torch.testing.assert_close(together.kl_data_flow, average.kl_data_flow)
    average_of_values = terms(lambda input, condition: both(input, condition).mean(0))
    torch.testing.assert_close(together.kl_flow_energy, average_of_values.kl_flow_energy)
    # The average of the quadratics is another, up to a constant that differs with x.
    if normalizer == "importance":
        torch.testing.assert_close(together.kl_flow_energy, average.kl_flow_energy)
    # One energy may come with or without the axis of members.
    single = terms(lambda input, condition: first(input, condition).unsqueeze(0))
    for got, want in zip(single, alone, strict=True):
        torch.testing.assert_close(got, want)


def test_each_term_reaches_only_its_own_models():
    theta, x = pairs()
    flow, energy = GaussianFlow(0.1), QuadraticEnergy(2.0, 0.3, 0.4)
    terms = divergences(flow, energy, theta, x)
    for term, reaches_flow, reaches_energy in zip(
        terms, (True, True, False), (False, True, True), strict=True
    ):
        for model, reaches in ((flow, reaches_flow), (energy, reaches_energy)):
            gradients = torch.autograd.grad(
                term.mean(),
                list(model.parameters()),
                retain_graph=True,
                allow_unused=True,
            )
            assert any(g is not None and bool(g != 0) for g in gradients) == reaches


def test_the_flow_gets_the_path_gradient_and_none_of_the_weights():
    theta, x = pairs()
    flow, energy = GaussianFlow(0.1, 0.2), QuadraticEnergy(2.0, 0.3)
    torch.manual_seed(0)
    got = torch.autograd.grad(
        divergences(flow, energy, theta, x).kl_flow_energy.mean(),
        list(flow.parameters()),
    )
    torch.manual_seed(0)
    draws, log_p = flow.sample_and_log_prob((64,), x)
    want = torch.autograd.grad((log_p - energy(draws, x)).mean(), list(flow.parameters()))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_constant_or_function_of_x_added_to_f(normalizer):
    """Changes no divergence where log Z cancels it, and never the agreement."""
    theta, x = pairs()
    flow, energy = GaussianFlow(0.1, 0.2), QuadraticEnergy(2.0, 0.3)

    class Shifted(nn.Module):
        def forward(self, input, condition):
            return energy(input, condition) + 3.0 + condition.square().sum(-1)

    results = []
    for f in (energy, Shifted()):
        torch.manual_seed(0)
        results.append(divergences(flow, f, theta, x, 8, normalizer))
    same = torch.allclose(results[0].kl_data_energy, results[1].kl_data_energy)
    assert same == (normalizer != "generalized")
    draws, log_p = flow.sample_and_log_prob((50,), x)
    plain = agreement(log_p, energy(draws, x))
    shifted = agreement(log_p, Shifted()(draws, x))
    torch.testing.assert_close(plain.ess, shifted.ess)
    torch.testing.assert_close(plain.kl_flow_energy, shifted.kl_flow_energy)


def test_weights_of_simulations_weigh_all_terms():
    theta, x = pairs()
    flow, energy = GaussianFlow(0.1, 0.2), QuadraticEnergy(2.0, 0.3)
    torch.manual_seed(0)
    all_terms = divergences(flow, energy, theta, x)
    weights = torch.zeros(7, dtype=torch.float64)
    weights[2] = 7.0
    torch.testing.assert_close(
        all_terms.mean(weights), torch.stack([term[2] for term in all_terms])
    )
