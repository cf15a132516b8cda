"""One contract for every flow: all builders with all shapes."""

from functools import partial

import pytest
import torch
from sbi.neural_nets import posterior_nn
from torch import nn

from sbi_jeffreys import ConditionalFlow, build_spline_flow
from sbi_jeffreys.preprocessing.support import Support

BUILDERS = {
    "nsf": build_spline_flow,
    "nsf small": partial(
        build_spline_flow, hidden_features=8, num_transforms=2, num_bins=4, num_blocks=1
    ),
    "sbi maf": posterior_nn("maf"),
    "sbi nsf": posterior_nn("nsf"),
    "zuko_nsf": posterior_nn("zuko_nsf"),
    "zuko_maf": posterior_nn("zuko_maf"),
}
SHAPES = [(1, (3,)), (2, (1,)), (5, (4,))]
IMAGE_NET = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def build(name, dim, condition_shape, bounded=True, seed=0):
    torch.manual_seed(seed)
    theta = torch.rand(50, dim, dtype=torch.float64) * 2 - 1
    x = torch.randn(50, *condition_shape)
    bound = torch.full_like(theta[0], 1.0 if bounded else float("inf"))
    support = Support(-bound, bound).standardize(theta)
    flow = ConditionalFlow(BUILDERS[name](support(theta)[0].float(), x), support)
    if name.startswith("nsf"):  # away from the identity, where only these start
        for parameter in flow.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return flow.double(), theta, x.double()


contract = pytest.mark.parametrize(
    ("name", "dim", "condition_shape"),
    [(name, *shape) for name in BUILDERS for shape in SHAPES],
)


@contract
def test_shapes(name, dim, condition_shape):
    flow, theta, x = build(name, dim, condition_shape)
    assert flow.log_prob(theta[:7], x[:7]).shape == (1, 7)
    assert flow.log_prob(theta[:6].view(3, 2, dim), x[:2]).shape == (3, 2)
    assert flow.log_prob(theta[:5].unsqueeze(1), x[:1]).shape == (5, 1)
    assert flow.log_prob(theta[:3].unsqueeze(1), x[:2]).shape == (3, 2)
    assert flow.loss(theta[:7], x[:7]).shape == (7,)
    assert flow.sample((4, 3), x[:2]).shape == (4, 3, 2, dim)
    assert flow.sample((), x[:2]).shape == (2, dim)
    draws, log_prob = flow.sample_and_log_prob((4, 3), x[:2])
    assert draws.shape == (4, 3, 2, dim)
    assert log_prob.shape == (4, 3, 2)
    assert flow.inverse_transform(theta[:7], x[:7]).shape == (7, dim)
    assert flow.inverse_transform(theta[:7], x[0]).shape == (7, dim)
    assert isinstance(flow.embedding_net, nn.Module)


@contract
def test_samples_come_with_their_log_densities(name, dim, condition_shape):
    bounded = name != "sbi maf"  # its untrained samples round onto the edges
    flow, _, x = build(name, dim, condition_shape, bounded)
    draws, log_prob = flow.sample_and_log_prob((6,), x[:4])
    again = flow.log_prob(draws, x[:4])
    torch.testing.assert_close(log_prob, again, atol=1e-4, rtol=1e-4)


@contract
def test_gradients_reach_the_parameters_through_samples(name, dim, condition_shape):
    flow, _, x = build(name, dim, condition_shape)
    draws, _ = flow.sample_and_log_prob((3,), x[:2])
    draws.square().sum().backward()
    reached = sum(bool(p.grad is not None and p.grad.any()) for p in flow.parameters())
    assert reached > 0.5 * len(list(flow.parameters()))


@contract
def test_batched_evaluation_equals_one_by_one(name, dim, condition_shape):
    flow, theta, x = build(name, dim, condition_shape)
    theta = theta[:6].view(3, 2, dim)
    together = flow.log_prob(theta, x[:2])
    apart = torch.stack(
        [
            torch.stack(
                [flow.log_prob(theta[s, b][None], x[b][None])[0, 0] for b in (0, 1)]
            )
            for s in range(3)
        ]
    )
    torch.testing.assert_close(together, apart)
    conditions = x[:2].expand(3, 2, *condition_shape)
    torch.testing.assert_close(flow.log_prob(theta, conditions), together)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("dim", [1, 2])
def test_densities_integrate_to_one(name, dim):
    wide = name == "sbi maf"  # its untrained samples have a standard deviation of 8
    flow, _, x = build(name, dim, (2,), bounded=not wide)
    num = 8001 if dim == 1 else 201
    reach = 60 if wide else 5
    u = torch.linspace(-reach, reach, num, dtype=torch.float64)
    u = u.unsqueeze(-1).expand(-1, dim)
    axes = flow.support.inverse(u)[0].T  # dense at the edges, where mass may be
    grid = torch.cartesian_prod(*axes).reshape(-1, 1, dim)
    with torch.no_grad():
        mass = flow.log_prob(grid, x[:1]).exp().reshape([num] * dim)
    for axis in reversed(axes):
        mass = torch.trapezoid(mass, axis)
    assert mass.item() == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("name", BUILDERS)
def test_no_sample_leaves_the_support(name):
    flow, _, x = build(name, 2, (3,))
    with torch.no_grad():
        draws = flow.float().sample((5000,), 30 * x[:3].float())
    assert (draws.abs() < 1).all()


def test_the_default_flow_starts_as_a_standard_normal():
    theta, x = torch.randn(20, 4), torch.randn(20, 3)
    flow = build_spline_flow(theta, x)
    expected = torch.distributions.Normal(0, 1).log_prob(theta).sum(-1)
    torch.testing.assert_close(flow.log_prob(theta, x)[0], expected)


@pytest.mark.parametrize("name", BUILDERS)
def test_samples_are_mapped_back_to_their_noise(name):
    flow, _, x = build(name, 3, (2,), bounded=False)
    torch.manual_seed(1)
    draws = flow.sample((5,), x[:2])
    torch.manual_seed(1)
    noise = torch.randn(10, 3, dtype=torch.float64).view(5, 2, 3)
    torch.testing.assert_close(
        flow.inverse_transform(draws, x[:2]), noise, atol=1e-5, rtol=1e-5
    )


def test_each_condition_is_embedded_once_for_all_samples():
    class Counting(nn.Flatten):
        rows = 0

        def forward(self, input):
            Counting.rows += len(input)
            return super().forward(input)

    theta, x = torch.randn(20, 2), torch.randn(20, 3, 4)
    flow = build_spline_flow(theta, x, embedding_net=Counting())
    Counting.rows = 0
    flow = ConditionalFlow(flow, Support(torch.full((2,), -9e9), torch.full((2,), 9e9)))
    flow.sample_and_log_prob((50,), x[:3])
    flow.log_prob(torch.randn(50, 3, 2), x[:3])
    assert Counting.rows == 6


def test_an_image_embedding():
    theta, x = torch.randn(20, 2), torch.randn(20, 3, 4)
    flow = build_spline_flow(theta, x, embedding_net=IMAGE_NET)
    assert flow.log_prob(theta, x).shape == (1, 20)


@pytest.mark.parametrize("name", ["mdn", "made"])
def test_an_estimator_without_reparameterised_samples_is_refused(name):
    theta, x = torch.randn(20, 2), torch.randn(20, 3)
    support = Support(torch.full((2,), -1.0), torch.ones(2))
    flow = ConditionalFlow(posterior_nn(name)(theta, x), support)
    with pytest.raises(TypeError, match="can't be sampled differentiably"):
        flow.sample_and_log_prob((2,), x[:2])


@contract
def test_given_what_was_embedded_it_is_the_same(name, dim, condition_shape):
    """Flows that can't be given embedded conditions say so."""
    flow, theta, x = build(name, dim, condition_shape)
    embedded = flow.given(x[:4]).embedded
    assert flow.takes_embedded == (embedded is not None)
    if embedded is None:
        with pytest.raises(TypeError):
            flow.given_embedded(torch.zeros(4, 3))
        return
    one, other = flow.given(x[:4]), flow.given_embedded(embedded)
    assert other.embedded is embedded
    points = theta[:8].view(2, 4, dim)
    assert torch.equal(one.log_prob(points), other.log_prob(points))
    draws = []
    for given in (one, other):
        torch.manual_seed(1)
        draws.append(given.rsample_and_log_prob(3))
    for got, want in zip(*draws, strict=True):
        assert torch.equal(got, want)


def test_what_is_embedded_is_not_embedded_again():
    theta, x = torch.randn(20, 2), torch.randn(20, 3)
    net = nn.Linear(3, 4)
    flow = ConditionalFlow(
        build_spline_flow(theta, x, embedding_net=net),
        Support(torch.full((2,), -9e9), torch.full((2,), 9e9)),
    )
    embedded = flow.given(x).embedded
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    given = flow.given_embedded(embedded)
    given.rsample_and_log_prob(2)
    given.log_prob(theta[None])
    assert calls == []
    flow.given(x)
    assert calls == [1]
