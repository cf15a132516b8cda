"""The captured step. Without a GPU, "capturing" keeps the function and "replaying" calls
it, as a CUDA graph does with the kernels."""

import copy
from functools import cache, partial

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import (
    Exponential,
    Independent,
    MultivariateNormal,
    Uniform,
)
from torch.utils._python_dispatch import TorchDispatchMode

from sbi_jeffreys import JNPE, build_spline_flow
from sbi_jeffreys.training.cuda_graph import NUM_EAGER_STEPS, CapturedStep

PRIORS = {
    "box": BoxUniform(-torch.ones(2), torch.ones(2)),
    "normal": MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "half lines": Independent(Exponential(torch.ones(2), validate_args=True), 1),
    "both": MultipleIndependent(
        [
            Exponential(torch.ones(1), validate_args=True),
            Uniform(torch.zeros(1), torch.ones(1), validate_args=True),
        ]
    ),
}


FLOW = partial(build_spline_flow, hidden_features=16, num_transforms=2)


@cache
def training_and_batch(name):
    """A short training on the CPU, without the pool, and a batch."""
    torch.manual_seed(0)
    theta = PRIORS[name].sample((100,))
    x = theta + 0.1 * torch.randn_like(theta)
    trainer = JNPE(PRIORS[name], FLOW, show_progress_bars=False)
    trainer.append_simulations(theta, x)
    with pytest.warns(UserWarning, match="Training stopped at"):
        trainer.train(max_num_epochs=2, calibration_kernel=lambda x: torch.ones(len(x)))
    return trainer._fit.training, (theta, x, torch.ones(100))


def trained_step(name):
    """The step of a training that has begun, and a batch."""
    training, batch = training_and_batch(name)
    step = copy.deepcopy(training.step)
    step.pair.train()
    step.gather()
    return step, batch


def trained_step_on_gpu(num=100):
    prior = BoxUniform(-torch.ones(2), torch.ones(2), device="cuda")
    torch.manual_seed(0)
    theta = prior.sample((num,))
    x = theta + 0.1 * torch.randn_like(theta)
    trainer = JNPE(prior, device="cuda", show_progress_bars=False)
    with pytest.warns(UserWarning, match="Training stopped at"):
        trainer.append_simulations(theta, x).train(max_num_epochs=2)
    step = trainer._fit.training.step
    step.pair.train()
    step.gather()
    return step, [t.to("cuda") for t in (theta, x, torch.ones(num))]


class NoWaiting(TorchDispatchMode):
    """Refuse operations that can't be captured: those that make the host wait, and those
    whose result has a shape that depends on values."""

    REFUSED = (
        *("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"),
        "lift_fresh",  # a constant made on the host
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.REFUSED, name
        if name in ("index", "index_put", "index_put_"):
            indices = [index for index in args[1] if index is not None]
            assert all(index.dtype != torch.bool for index in indices), "mask"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PRIORS)
def test_a_step_does_not_wait_for_the_device(name):
    step, batch = trained_step(name)
    step.reset_statistics()
    with NoWaiting():
        step(*batch)
    assert step.count == 1


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda ones: ones.sum().item(), "_local_scalar_dense"),
        (lambda ones: ones[ones > 0], "mask"),
        (lambda ones: ones.index_put_((ones > 0,), ones[0]), "mask"),
        (lambda ones: ones + torch.tensor(1.0), "lift_fresh"),
    ],
)
def test_no_waiting_notices(wait, name):
    ones = torch.ones(3)
    with pytest.raises(AssertionError, match=name), NoWaiting():
        wait(ones)


def test_a_step_leaves_its_results_where_they_were():
    step, batch = trained_step("box")

    def addresses():
        kept = [step.total, step.first_bad_step, step.count, step.multipliers.values]
        kept += [*step.pair.parameters(), *step.average.module.parameters()]
        return [tensor.data_ptr() for tensor in kept]

    before = addresses()
    step(*batch)
    assert addresses() == before


def test_replaying_gives_the_numbers_of_calling():
    eager, batch = trained_step("box")
    replayed = copy.deepcopy(eager)
    captured = CapturedStep(replayed, record=lambda function: function)
    for step, train in ((eager, eager), (replayed, captured)):
        torch.manual_seed(1)
        for size in (50, 50, 50, 50, 30, 50, 50):
            rows = torch.randperm(100)[:size]
            train(*(tensor[rows] for tensor in batch))
        assert step.count == eager.count
    assert captured.replay is not None
    weights = zip(eager.pair.parameters(), replayed.pair.parameters(), strict=True)
    assert all(torch.equal(got, want) for got, want in weights)
    assert torch.equal(eager.total, replayed.total)


def test_only_batches_of_the_captured_shapes_are_replayed():
    called, recorded = [], []

    def record(function):
        recorded.append(function)
        return function

    step = CapturedStep(lambda *batch: called.append([len(t) for t in batch]), record)
    for size in (5, 5, 5, 5, 3, 5):
        step(*(torch.zeros(size) for _ in range(3)))
    assert called == [[size] * 3 for size in (5, 5, 5, 5, 3, 5)]
    assert len(recorded) == 1


def test_what_can_not_be_captured_runs_eagerly_with_a_warning():
    called = []

    def record(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    step = CapturedStep(lambda *batch: called.append(batch), record)
    for _ in range(NUM_EAGER_STEPS):
        step(torch.zeros(2))
    with pytest.warns(UserWarning, match="runs eagerly, which is slower: operation not"):
        step(torch.zeros(2))
    step(torch.zeros(2))
    assert len(called) == NUM_EAGER_STEPS + 2


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_numbers_of_eager_steps():
    eager, batch = trained_step_on_gpu()
    replayed = copy.deepcopy(eager)
    for step, train in ((eager, eager), (replayed, CapturedStep(replayed))):
        step.reset_statistics()
        torch.cuda.manual_seed(1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(10):
                train(*batch)
        torch.cuda.synchronize()
    weights = zip(eager.pair.parameters(), replayed.pair.parameters(), strict=True)
    for got, want in weights:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(eager.total, replayed.total, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_training_on_a_gpu_captures_its_step(recwarn):
    trained_step_on_gpu(num=2000)
    assert not [w for w in recwarn if "could not be captured" in str(w.message)]


class Waiting(torch.nn.Flatten):
    """An embedding that waits for its values."""

    def forward(self, x):
        return super().forward(x) + 0 * x.sum().item()


@pytest.mark.gpu
def test_training_on_a_gpu_goes_on_if_its_step_can_not_be_captured():
    prior = BoxUniform(-torch.ones(2), torch.ones(2), device="cuda")
    theta = prior.sample((2000,)).cpu()
    trainer = JNPE(
        prior, device="cuda", embedding_net=Waiting(), show_progress_bars=False
    )
    trainer.append_simulations(theta, theta + 0.1, data_device="cpu")
    with pytest.warns(UserWarning, match="could not be captured"):
        trainer.train(max_num_epochs=3)
    assert len(trainer.summary["validation_loss"]) == 3
