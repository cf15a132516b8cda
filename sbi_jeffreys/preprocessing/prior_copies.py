"""Copies of priors that can be evaluated anywhere, and on the CPU."""

from copy import deepcopy
from typing import Any

import torch
from sbi.utils.user_input_checks_utils import (
    CustomPriorWrapper,
    move_distribution_to_device,
)
from torch.distributions import Distribution


def unvalidated(prior: Any) -> Any:
    """Return a copy that does not check its arguments. A check waits for the GPU."""
    prior = deepcopy(prior)
    parts: list[Any] = [prior]
    while parts:
        part = parts.pop()
        if isinstance(part, Distribution):
            part._validate_args = False
        for name, value in getattr(part, "__dict__", {}).items():
            values = value if isinstance(value, list) else [value]
            parts += [inner for inner in values if isinstance(inner, Distribution)]
            if isinstance(part, CustomPriorWrapper) and name == "custom_prior":
                parts.append(value)
    return prior


def on_cpu(prior: Any) -> Any:
    """Return a copy on the CPU."""
    return moved(deepcopy(prior), "cpu")


def moved(prior: Any, device: torch.device | str) -> Any:
    """Return a prior on a device, where sbi can move it."""
    if isinstance(prior, CustomPriorWrapper) and torch.device(device).type == "cpu":
        return prior  # it is there, and sbi raises an error
    return move_distribution_to_device(prior, device)
