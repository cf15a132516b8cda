"""The embedding networks of sbi that people use: each trains, and both models sample."""

from copy import deepcopy

import pytest
import torch
from sbi.neural_nets.embedding_nets import (
    CausalCNNEmbedding,
    CNNEmbedding,
    FCEmbedding,
    LRUEmbedding,
    PermutationInvariantEmbedding,
    TransformerEmbedding,
)
from torch import nn

from tests.small_trainings import BOX, new_trainer, quick, same_weights

SMALL_TRANSFORMER = {
    "feature_space_dim": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 8,
}
TRIAL = {"output_dim": 4, "num_hiddens": 8}
CONVOLUTIONS = {"num_linear_units": 8, "output_dim": 4, "kernel_size": 3}

NETWORKS = {
    "fully connected": (lambda: FCEmbedding(16, **TRIAL), (16,)),
    "convolutional, series": (lambda: CNNEmbedding((16,), **CONVOLUTIONS), (16,)),
    "convolutional, images": (
        lambda: CNNEmbedding((8, 8), in_channels=2, **CONVOLUTIONS),
        (2, 8, 8),
    ),
    "causal": (
        lambda: CausalCNNEmbedding(
            (16,), num_conv_layers=2, pool_kernel_size=4, output_dim=4
        ),
        (16,),
    ),
    "trials": (
        lambda: PermutationInvariantEmbedding(
            FCEmbedding(2, **TRIAL), 4, aggregation_fn="mean", **TRIAL
        ),
        (4, 2),
    ),
    "linear recurrent, of complex weights": (
        lambda: LRUEmbedding(input_dim=3, output_dim=4, num_blocks=1),
        (6, 3),
    ),
    "transformer, scalars": (
        lambda: TransformerEmbedding(**SMALL_TRANSFORMER),
        (6,),
    ),
    "transformer, vectors": (
        lambda: TransformerEmbedding(**SMALL_TRANSFORMER),
        (6, 8),
    ),
}
"""A network with four features, and the shape of an x that it takes."""


def observe(theta, shape, has_missing):
    """Simulate x, `(N, *shape)`, whose entries are of each parameter in turn."""
    columns = torch.arange(shape.numel()) % 2
    x = (theta[:, columns] + 0.1 * torch.randn(len(theta), shape.numel())).reshape(
        -1, *shape
    )
    if has_missing:
        x[torch.arange(shape[0]) >= torch.randint(1, 5, (len(theta), 1))] = torch.nan
    return x


def trainer_with(name, shape, **options):
    torch.manual_seed(0)
    trainer = new_trainer(BOX, "nsf", **options)
    theta = BOX.sample((120,))
    x = observe(theta, torch.Size(shape), name == "trials")
    return trainer.append_simulations(theta, x, exclude_invalid_x=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_and_both_models_sample(name):
    """The seed is one with which the last ReLU of small networks lets a gradient pass."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    before = deepcopy(net)
    trainer = trainer_with(name, shape, embedding_net=net)
    flow = quick(trainer)
    trained = [part for part in flow.embedding_net.modules() if type(part) is type(net)]
    assert not same_weights(trained[0], before)
    x = trainer.get_simulations()[1][:3]
    assert flow.embedding_net(x).shape == trainer.energy.embedding_net(x).shape == (3, 4)
    for kind in ("direct", "energy"):
        posterior = trainer.build_posterior(sample_with=kind)
        samples = posterior.sample_batched((20,), x)
        assert samples.shape == (20, 3, 2)
        assert (samples.abs() <= 1).all()
        assert posterior.sample((20,), x=x[:1]).shape == (20, 2)
        assert posterior.log_prob(torch.zeros(4, 2), x=x[:1]).isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_it_should_return_is_said(name):
    make, shape = NETWORKS[name]
    net = nn.Sequential(make(), nn.Unflatten(1, (1, 4)))
    expected = r"features of shape \(batch, features\) for x of shape \(\d+, .*\), got"
    for argument in ("embedding_net", "energy_embedding_net"):
        options = {"embedding_net": make(), argument: net}
        with pytest.raises(
            ValueError, match=rf"Expected `{argument}` to return {expected} \(\d+, 1, 4\)"
        ):
            trainer_with(name, shape, **options).train()


@pytest.mark.parametrize("name", NETWORKS)
def test_which_x_it_does_not_take_is_said(name):
    make, shape = NETWORKS[name]
    other = (*shape, 3)
    expected = ", ".join(map(str, other))
    with pytest.raises(
        ValueError,
        match=rf"Expected `embedding_net` to take x of shape \('batch', {expected}\), "
        "but it raises",
    ):
        trainer_with(name, other, embedding_net=make()).train()
