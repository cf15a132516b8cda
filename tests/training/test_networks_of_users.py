"""Networks of users may move their own parameters, and freeze them between calls."""

import warnings

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn

from sbi_jeffreys import JNPE

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


def trainer_with(net):
    torch.manual_seed(0)
    theta = PRIOR.sample((80,))
    trainer = JNPE(PRIOR, embedding_net=net, pool=False, show_progress_bars=False)
    return trainer.append_simulations(theta, theta + 0.1 * torch.randn_like(theta))


def train(trainer, epochs, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer.train(max_num_epochs=epochs, **options)


def trained_layer(trainer, kind=nn.Linear):
    """The layer of the user's network in the flow that was trained."""
    embedding = trainer._fit.networks.flow.embedding_net
    modules = [m for m in embedding.modules() if isinstance(m, kind)]
    return modules[-1]


class Clamped(nn.Linear):
    def forward(self, x):
        self.weight.data = self.weight.data.clamp(-0.3, 0.3)
        return super().forward(x)


def test_parameters_that_a_network_moves_are_trained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), Clamped(3, 2))
    before = net[1].weight.detach().clamp(-0.3, 0.3)
    trainer = trainer_with(net)
    train(trainer, 5)
    trained = trained_layer(trainer, Clamped).weight.detach()
    assert (trained - before).abs().max() > 1e-3
    assert trained.abs().max() <= 0.31  # one step beyond the clamp at most


def test_a_layer_may_be_freed_between_calls():
    trainer = trainer_with(nn.Linear(2, 2).requires_grad_(False))
    train(trainer, 2)
    layer = trained_layer(trainer).requires_grad_(True)
    before = layer.weight.detach().clone()
    train(trainer, 8, resume_training=True)
    assert (layer.weight - before).abs().max() > 1e-3
    assert layer.weight.grad is None


@pytest.mark.parametrize("now_frozen", [True, False])
def test_a_checkpoint_does_not_depend_on_what_is_frozen(tmp_path, now_frozen):
    path = tmp_path / "checkpoint"
    for frozen, epochs in ((not now_frozen, 3), (now_frozen, 8)):
        torch.manual_seed(1)
        net = nn.Linear(2, 2).requires_grad_(not frozen)
        trainer = trainer_with(net)
        train(trainer, epochs, checkpoint=path)
    assert trainer.epoch == 8
    assert all(p.isfinite().all() for p in trainer._fit.networks.parameters())


class Counting(nn.Module):
    """Has a number that is not trained and changes by itself."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.count = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.count += 1
        return self.linear(x)


def test_what_changes_by_itself_is_not_lost():
    trainer = trainer_with(Counting())
    train(trainer, 3)
    assert trained_layer(trainer, Counting).count > 0


def test_the_networks_of_the_package_are_one_vector_each():
    trainer = trainer_with(None)
    train(trainer, 1)
    step = trainer._fit.training.step
    assert not step.others
    assert len(step.vectors) == 2
    trained = sum(p.numel() for p in step.pair.parameters())
    assert sum(len(v.vector) for v in step.vectors) == trained
