import pytest
import torch
from torch import nn

from sbi_jeffreys.training.averaging import MovingAverage, newest_share


@pytest.mark.parametrize(("num", "share"), [(0, 1.0), (9, 0.5), (81, 0.1), (1000, 0.05)])
def test_the_newest_value_has_a_large_share_early_on(num, share):
    assert newest_share(num, 0.95) == pytest.approx(share)
    as_tensor = newest_share(torch.tensor(float(num)), 0.95)
    assert as_tensor.item() == pytest.approx(share)


def test_a_moving_average_is_the_recursion():
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    average = MovingAverage(module, past=0.8)
    expected = module.weight.detach().clone()
    for num in range(60):
        module.weight.data += torch.randn_like(module.weight)
        average.update()
        expected += max(0.2, 9 / (9 + num)) * (module.weight.detach() - expected)
    torch.testing.assert_close(average.module.weight.detach(), expected)
    assert average.num_updates == 60
    assert not average.module.weight.requires_grad


def test_buffers_are_copied_not_averaged():
    module = nn.BatchNorm1d(2)
    average = MovingAverage(module, past=0.9)
    module(torch.randn(5, 2))
    average.copy_buffers()
    assert torch.equal(average.module.running_mean, module.running_mean)
