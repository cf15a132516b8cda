import copy
import pickle

import pytest
import torch
from torch import nn

from sbi_jeffreys.training.averaging import FlatParameters, MovingAverage, newest_share


def mixed_module():
    """Parameters of two types, one of them frozen, and one that is empty."""
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    module.register_parameter("phase", nn.Parameter(torch.zeros(2, dtype=torch.cdouble)))
    module.register_parameter("empty", nn.Parameter(torch.zeros(0).double()))
    module[1].weight.requires_grad_(False)
    return module


def loss(module, x):
    return (module[1](module[0](x)) * module.phase.exp().abs().sum()).square().mean()


def test_there_is_one_vector_for_each_type_that_is_trained():
    vectors = FlatParameters.of(mixed_module().parameters())
    assert [v.vector.dtype for v in vectors] == [torch.cdouble, torch.double]
    assert [len(v.vector) for v in vectors] == [2, 3 * 2 + 2 + 1]


def test_gradients_and_steps_are_those_of_the_parameters():
    torch.manual_seed(0)
    module, x = mixed_module(), torch.randn(5, 3).double()
    other = copy.deepcopy(module)
    weights = FlatParameters.of(module.parameters())
    flat = torch.optim.Adam([w.vector for w in weights], lr=0.1)
    plain = torch.optim.Adam([p for p in other.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        for each in weights:
            each.gather()
            each.zero_grad()
        loss(module, x).backward()
        flat.step()
        plain.zero_grad()
        loss(other, x).backward()
        plain.step()
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_gathering_again_or_after_a_copy_changes_no_value():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    before = copy.deepcopy(module.state_dict())
    (weights,) = FlatParameters.of(module.parameters())
    weights.gather()
    address = module.bias.data_ptr()
    weights.gather()
    assert module.bias.data_ptr() == address
    for kept in ((module, weights), pickle.loads(pickle.dumps((module, weights)))):
        copied, its_weights = copy.deepcopy(kept)
        its_weights.gather()
        its_weights.vector.data.zero_()
        assert not any(p.any() for p in copied.parameters())
        torch.testing.assert_close(kept[0].state_dict(), before, rtol=0, atol=0)


def test_released_parameters_have_memory_of_their_own():
    module = nn.Linear(3, 2)
    (weights,) = FlatParameters.of(module.parameters())
    weights.gather()
    weights.zero_grad()
    weights.release()
    sizes = {p.untyped_storage().nbytes() for p in module.parameters()}
    assert sizes == {6 * 4, 2 * 4}
    assert all(p.grad is None for p in module.parameters())


def test_gradients_that_others_left_do_not_stand_in_the_way():
    module = nn.Linear(3, 2)
    (weights,) = FlatParameters.of(module.parameters())
    weights.gather()
    weights.zero_grad()
    weights.release()
    module(torch.ones(1, 3)).sum().backward()
    weights.gather()
    weights.zero_grad()
    assert not weights.vector.grad.any()
    module(torch.ones(1, 3)).sum().backward()
    assert torch.equal(weights.vector.grad, torch.ones(8))


@pytest.mark.parametrize(("num", "share"), [(0, 1.0), (9, 0.5), (81, 0.1), (1000, 0.05)])
def test_the_newest_value_has_a_large_share_early_on(num, share):
    assert newest_share(num, 0.95) == pytest.approx(share)
    as_tensor = newest_share(torch.tensor(float(num)), 0.95)
    assert as_tensor.item() == pytest.approx(share)


def test_a_moving_average_is_the_recursion():
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    weights = FlatParameters.of(module.parameters())
    average = MovingAverage(module, past=0.8, weights=weights)
    expected = module.weight.detach().clone()
    for vectors in (weights, average.averages):
        vectors[0].gather()
    for num in range(60):
        module.weight.data += torch.randn_like(module.weight)
        average.update()
        expected += max(0.2, 9 / (9 + num)) * (module.weight.detach() - expected)
    torch.testing.assert_close(average.module.weight.detach(), expected)
    assert average.num_updates == 60
    assert not average.module.weight.requires_grad


def test_buffers_are_copied_not_averaged():
    module = nn.BatchNorm1d(2)
    average = MovingAverage(module, 0.9, FlatParameters.of(module.parameters()))
    module(torch.randn(5, 2))
    average.copy_buffers()
    assert torch.equal(average.module.running_mean, module.running_mean)
