"""The simulators of `fields`, against closed forms. Statistical tests fail by chance in
less than 1e-4 of all seeds each; they are seeded."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch.distributions import Binomial

from benchmarks.tasks import fields
from benchmarks.tasks.fields import FIELDS


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_nobody_is_infected_who_can_not_be_and_everybody_recovers():
    """With a chance of recovery of one, the first cases infect nobody after one day."""
    no_contact = torch.tensor([[0.3, 0.2, 0.0]]).expand(300, -1)
    x = FIELDS["epidemic"].simulator(no_contact)
    assert (x[:, -3] == fields.FIRST_CASES).all()
    left = fields.FIRST_CASES * 0.8**5
    error = (left * (1 - 0.8**5) / 300) ** 0.5
    assert abs(x[:, 0].mean() - left) < 4 * error
    at_once = torch.tensor([[0.0, 1.0, 12.0]]).expand(5, -1)
    assert (FIELDS["epidemic"].simulator(at_once)[:, 0] == 0).all()


def test_new_cases_of_a_day_are_those_of_random_contacts(monkeypatch):
    """A susceptible has n contacts with the first cases, binomial; mean of the risk."""
    monkeypatch.setattr(fields, "DAYS", 5)
    monkeypatch.setattr(fields, "SEEN_EVERY", 5)
    infects, degree = 0.2, 10.0
    theta = torch.tensor([[infects, 1.0, degree]]).expand(1000, -1)
    monkeypatch.setattr(fields, "DAYS", 1)
    monkeypatch.setattr(fields, "SEEN_EVERY", 1)
    x = FIELDS["epidemic"].simulator(theta)
    n = Binomial(fields.FIRST_CASES, torch.tensor(degree / (fields.PEOPLE - 1)))
    ways = torch.arange(fields.FIRST_CASES + 1.0)
    risk = (n.log_prob(ways).exp() * (1 - (1 - infects) ** ways)).sum()
    susceptible = fields.PEOPLE - fields.FIRST_CASES
    new = x[:, -3] - fields.FIRST_CASES
    assert abs(new.mean() - susceptible * risk) < 4 * new.std() / 1000**0.5


def test_choices_are_those_of_a_diffusion():
    """P(upper) = (1 − exp(−2 v z a)) / (1 − exp(−2 v a)), up to the steps' overshoot."""
    drift, bound, start = 0.8, 1.2, 0.4
    theta = torch.tensor([[drift, bound, start, 0.2]]).expand(200, -1)
    x = FIELDS["drift_diffusion"].simulator(theta)
    upper, lower = x[:, 0].mean(), x[:, 6].mean()
    assert upper + lower > 0.98
    exact = -math.expm1(-2 * drift * start * bound) / -math.expm1(-2 * drift * bound)
    assert float(upper / (upper + lower)) == pytest.approx(exact, abs=0.03)
    assert (x[:, 1:6].diff(dim=-1) >= 0).all()
    assert x[:, 1].min() > 0.2


def test_a_choice_that_no_trial_takes_has_no_times():
    theta = torch.tensor([[8.0, 0.5, 0.7, 0.1]]).expand(50, -1)
    x = FIELDS["drift_diffusion"].simulator(theta)
    none = x[:, 6] == 0
    assert none.any()
    assert not x[none, 7:].any()


def test_concentrations_solve_their_equations():
    """A gut that empties into one compartment, from which the drug is cleared."""
    absorption, clearance, volume = 1.4, 6.0, 40.0

    def flow(_, amounts):
        taken = absorption * amounts[0]
        return [-taken, taken - clearance / volume * amounts[1]]

    hours = fields.HOURS.double().numpy()
    solved = solve_ivp(
        flow, (0, 24), [fields.DOSE, 0], t_eval=hours, rtol=1e-9, atol=1e-9
    )
    parts = torch.tensor([absorption, clearance, volume]).double().unsqueeze(-1)
    found = fields.concentration(*parts)
    torch.testing.assert_close(
        found, torch.tensor(solved.y[1] / volume), rtol=1e-6, atol=0
    )


def test_a_fifth_of_the_measurements_are_lost():
    _, x = FIELDS["pharmacokinetics"].simulate(1000, 0)
    measured, kept = x.split(12, -1)
    error = (0.2 * 0.8 / 12_000) ** 0.5
    assert abs((kept == 0).float().mean() - fields.LOST) < 4 * error
    assert not measured[kept == 0].any()


def test_a_source_behind_the_lens_is_a_ring_with_its_radius():
    theta = torch.tensor([[1.0, 0.0, 0.0, 0.1, 0.0]]).expand(400, -1)
    image = FIELDS["lens"].simulator(theta).mean((0, 1))
    line = torch.linspace(-fields.FIELD_OF_VIEW, fields.FIELD_OF_VIEW, fields.PIXELS)
    distance = (line.square() + line.square().unsqueeze(-1)).sqrt()
    exact = torch.exp(-(distance - 1).square() / 0.02)
    assert (image - exact).abs().max() < 5 * fields.PIXEL_NOISE / 400**0.5
    assert (image - image.T).abs().max() < 0.05


NEURON = torch.tensor([[50.0, 5.0, 0.1, 0.07, 53.0, -90.0, -70.0, -60.0, 600.0, 0.0]])


def test_a_neuron_rests_without_current_and_fires_with_it(monkeypatch):
    resting = FIELDS["neuron"].simulator(NEURON)[0, :4]
    assert (resting + 70).abs().max() < 8
    fires = FIELDS["neuron"].simulator(NEURON).max()
    assert fires > 0
    monkeypatch.setattr(fields, "CURRENT", 0.0)
    assert FIELDS["neuron"].simulator(NEURON).max() < -50


def test_a_rate_has_its_limit_where_its_quotient_has_none():
    x = torch.tensor([-1e-9, 0.0, 1e-9, 4.0]).double()
    expected = torch.tensor([4.0, 4.0, 4.0, 4 / math.expm1(1.0)]).double()
    torch.testing.assert_close(fields._ratio(x, 4.0), expected)
