"""The embedding network that the two models of a pair may share."""

from copy import deepcopy

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn

from sbi_jeffreys import ConditionalEnergy, ConditionalFlow, LogRatioNet
from sbi_jeffreys.models.pair import ModelPair
from sbi_jeffreys.models.spline_flow import build_spline_flow
from sbi_jeffreys.preprocessing.support import support_of

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


class Counting(nn.Linear):
    """Counts the conditions that it embeds."""

    rows = 0

    def forward(self, x):
        self.rows += len(x)
        return super().forward(x)


def make_pair(shared):
    torch.manual_seed(0)
    theta = PRIOR.sample((50,))
    x = theta + 0.1 * torch.randn(50, 2)
    support = support_of(PRIOR, theta)
    net = build_spline_flow(
        support(theta)[0], x, Counting(2, 3), hidden_features=8, num_transforms=1
    )
    flow = ConditionalFlow(net, support)
    energy = ConditionalEnergy(
        LogRatioNet(2, 3, hidden_features=8),
        PRIOR,
        support,
        theta,
        flow.embedding_net if shared else Counting(2, 3),
        x[0].shape,
    )
    return ModelPair(flow, energy), theta, x


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_embedding_is_computed_once(shared):
    pair, theta, x = make_pair(shared)
    assert pair.shares_embedding == shared
    counter = pair.flow.embedding_net[-1]
    counter.rows = 0
    flow, energy = pair.given(x[:7])
    points = theta[:7].unsqueeze(0)
    f = energy(points)
    flow.log_prob(points)
    assert counter.rows == 7
    torch.testing.assert_close(f, pair.energy(points, x[:7]))


def test_a_method_of_the_energy_can_be_asked_for():
    pair, theta, x = make_pair(True)
    _, members = pair.given(x[:5], pair.energy.members)
    assert members(theta[:5].unsqueeze(0)).shape == (1, 1, 5)


def test_an_energy_with_its_own_embedding_keeps_only_the_network():
    pair, _, _ = make_pair(True)
    energy = pair.energy_with_own_embedding()
    assert energy.net is pair.energy.net
    assert energy.embedding_net is not pair.energy.embedding_net
    assert not ModelPair(pair.flow, energy).shares_embedding
    for name, value in pair.energy.state_dict().items():
        assert torch.equal(value, energy.state_dict()[name])


def test_a_copy_of_the_energy_shares_the_embedding_of_a_copy_of_the_flow():
    pair, _, _ = make_pair(True)
    flow, energy = deepcopy(pair.flow), deepcopy(pair.energy)
    assert pair.energy_beside(flow, energy) is energy
    assert ModelPair(flow, energy).shares_embedding
    assert pair.energy.embedding_net is not energy.embedding_net


def test_embeddings_that_differ_or_were_never_shared_stay_apart():
    pair, _, _ = make_pair(True)
    flow = deepcopy(pair.flow)
    flow.embedding_net[-1].weight.data += 0.1
    energy = pair.energy_beside(flow, deepcopy(pair.energy))
    assert energy.embedding_net is not flow.embedding_net

    apart, _, _ = make_pair(False)
    flow = deepcopy(apart.flow)
    energy = deepcopy(apart.energy)
    energy.embedding_net = deepcopy(flow.embedding_net)  # equal, but not by training
    assert apart.energy_beside(flow, energy).embedding_net is not flow.embedding_net
