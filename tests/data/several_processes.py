"""Training that `test_processes` runs in one process, and under `torchrun` in two."""

import sys
import warnings

import torch
from sbi.utils import BoxUniform
from torch import distributed

from sbi_jeffreys import JNPE
from sbi_jeffreys.pool.emulation import EmulatedBatches
from sbi_jeffreys.pool.synthetic_likelihood import folds

NUM_PARTICLES = 8  # in training, and by default in validation
NOISE = torch.randn(NUM_PARTICLES, 1, 2, generator=torch.Generator().manual_seed(5))


def same_noise_for_every_x(like):
    """Noise `(K · batch, 2)` that does not depend on the rows that a process has."""
    if len(like) < NUM_PARTICLES:  # the trial draws when networks are built
        return torch.zeros_like(like)
    if len(like) % NUM_PARTICLES:  # one draw for each x, where the flow follows
        return NOISE[0].expand_as(like)
    return NOISE.expand(-1, len(like) // NUM_PARTICLES, -1).reshape(like.shape)


draw_pairs = EmulatedBatches.draw


def same_pairs_for_every_process(batches):
    """Emulated pairs that do not depend on the process."""
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        return draw_pairs(batches)


def train(rank, batch_size=100, num_simulations=460):
    torch.randn_like = same_noise_for_every_x
    EmulatedBatches.draw = same_pairs_for_every_process
    folds.MAX_STEPS = 20  # with every step, rounding errors grow
    generator = torch.Generator().manual_seed(1)
    theta = 2 * torch.rand(num_simulations, 2, generator=generator) - 1
    x = theta + 0.3 * torch.randn(theta.shape, generator=generator)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    torch.manual_seed(rank)
    trainer = JNPE(prior, show_progress_bars=False, num_particles=NUM_PARTICLES)
    trainer.append_simulations(theta, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training stopped at")
        trainer.train(training_batch_size=batch_size, max_num_epochs=1)
        trainer.train(max_num_epochs=3, resume_training=True, training_batch_size=100)
    return trainer


def result(trainer):
    points = torch.linspace(-0.9, 0.9, 20).unsqueeze(-1)
    with torch.no_grad():
        f = trainer.energy(points.expand(20, 20, 2), points.expand(20, 2))
    return {
        "summary": {k: v for k, v in trainer.summary.items() if "sec" not in k},
        "flow": trainer.flow.state_dict(),
        "energy": trainer._fit.networks.energy.state_dict(),
        "pool": {"f": f},
    }


def main(folder):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    refusals = {}
    for name, options in (
        ("batch", {"batch_size": 99}),
        ("simulations", {"num_simulations": 460 + rank}),
    ):
        try:
            train(rank, **options)
        except ValueError as error:
            refusals[name] = str(error)
    torch.save({**result(train(rank)), "refusals": refusals}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
