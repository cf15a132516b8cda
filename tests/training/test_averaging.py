import copy
import pickle

import pytest
import torch
from torch import nn

from sbi_jeffreys.training.averaging import FlatParameters, MovingAverage, newest_share


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()


def vector_of(module):
    return FlatParameters(list(module.parameters()))


def test_gradients_and_steps_are_those_of_the_parameters():
    module, x = net(), torch.randn(5, 3).double()
    other = copy.deepcopy(module)
    vector = vector_of(module)
    flat = torch.optim.Adam([vector.vector], lr=0.1)
    plain = torch.optim.Adam(other.parameters(), lr=0.1)
    for _ in range(5):
        vector.gather()
        vector.zero_grad()
        module(x).square().mean().backward()
        flat.step()
        plain.zero_grad()
        other(x).square().mean().backward()
        plain.step()
    torch.testing.assert_close(module.state_dict(), other.state_dict())


def test_gathering_again_or_after_a_copy_changes_no_value():
    module = net()
    before = copy.deepcopy(module.state_dict())
    vector = vector_of(module)
    vector.gather()
    address = module[1].bias.data_ptr()
    vector.gather()
    assert module[1].bias.data_ptr() == address
    for kept in ((module, vector), pickle.loads(pickle.dumps((module, vector)))):
        copied, its_vector = copy.deepcopy(kept)
        its_vector.gather()
        its_vector.vector.data.zero_()
        assert not any(p.any() for p in copied.parameters())
        torch.testing.assert_close(kept[0].state_dict(), before, rtol=0, atol=0)


def test_released_parameters_have_memory_of_their_own():
    module = net()
    vector = vector_of(module)
    vector.gather()
    vector.zero_grad()
    vector.release()
    for parameter in module.parameters():
        assert parameter.untyped_storage().nbytes() == 8 * parameter.numel()
        assert parameter.grad is None


def test_a_release_that_is_cut_short_does_no_harm():
    module = net()
    before = copy.deepcopy(module.state_dict())
    vector = vector_of(module)
    vector.gather()
    first = vector.parameters[0]
    first.data = first.data.clone()
    vector.gather()
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    vector.vector.data.zero_()
    assert not any(p.any() for p in module.parameters())


def test_gradients_that_others_left_do_not_stand_in_the_way():
    module, x = net(), torch.ones(1, 3).double()
    vector = vector_of(module)
    vector.gather()
    vector.zero_grad()
    vector.release()
    module(x).sum().backward()
    vector.gather()
    vector.zero_grad()
    assert not vector.vector.grad.any()
    module(x).sum().backward()
    assert vector.vector.grad[-1] == 1
    assert all(p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(("num", "share"), [(0, 1.0), (9, 0.5), (81, 0.1), (1000, 0.05)])
def test_the_newest_value_has_a_large_share_early_on(num, share):
    assert newest_share(num, 0.95) == pytest.approx(share)
    as_tensor = newest_share(torch.tensor(float(num)), 0.95)
    assert as_tensor.item() == pytest.approx(share)


def test_a_moving_average_is_the_recursion():
    """Of a layer in a vector, and of one that is not."""
    module = net()
    vector, others = vector_of(module[0]), list(module[1].parameters())
    average = MovingAverage(module, 0.8, [vector], others)
    expected = [p.detach().clone() for p in module.parameters()]
    for each in (vector, *average.vectors):
        each.gather()
    for num in range(60):
        for parameter, mean in zip(module.parameters(), expected, strict=True):
            parameter.data += torch.randn_like(parameter)
            mean += max(0.2, 9 / (9 + num)) * (parameter.detach() - mean)
        average.update()
    torch.testing.assert_close(list(average.module.parameters()), expected)
    assert average.num_updates == 60
    assert not any(p.requires_grad for p in average.module.parameters())


def test_buffers_and_what_is_not_trained_are_copied():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    average = MovingAverage(module, 0.9, [], list(module[0].parameters()))
    module(torch.randn(5, 2))
    module[1].weight.data += 1
    average.update()
    assert not torch.equal(average.module[1].weight, module[1].weight)
    average.copy_others()
    assert torch.equal(average.module[0].running_mean, module[0].running_mean)
    assert torch.equal(average.module[1].weight, module[1].weight)
