"""The memory that training takes, JNPE beside sbi's NPE."""

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.report import section, table
from benchmarks.speed.contenders import Case
from benchmarks.speed.effort import max_num_epochs_expected


def memory(cases: Iterable[Case]) -> str:
    """Compare the memory of trainings, each in a process of its own."""
    lines = []
    for case in cases:
        growth = []
        for method in ("npe", "jnpe"):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                threads = torch.get_num_threads()
                call = process.submit(peak_growth, method, asdict(case), threads)
                growth.append(call.result())
        lines.append([case.num_simulations, *(f"{g / 2**20:.0f}" for g in growth)])
    return section(
        "Memory",
        "Growth of the peak memory during two epochs of training, in MiB. Each training "
        "runs in a process of its own. Memory is the resident set (Linux), or on CUDA "
        "the memory allocated there. Simulations are in memory before, but a trainer's "
        "copies of them count.",
        table(["simulations", "NPE, MiB", "JNPE, MiB"], lines),
    )


def peak_growth(
    method: Literal["npe", "jnpe"], case: dict[str, Any], threads: int
) -> int:
    """Train for two epochs in this process and return the peak's growth, in bytes."""
    torch.set_num_threads(threads)
    setting = Case(**case)
    trainer = getattr(setting, method)()
    on_cuda = torch.device(setting.device).type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
        before = torch.cuda.memory_allocated(setting.device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
    with max_num_epochs_expected():
        trainer.train(max_num_epochs=2, training_batch_size=setting.batch_size)
    if on_cuda:
        return torch.cuda.max_memory_allocated(setting.device) - before
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Return the resident set, "VmRSS", or its peak, "VmHWM", in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])
