"""Every private name of sbi and nflows that this package uses."""

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior


def device_of(posterior: NeuralPosterior) -> torch.device | str:
    """Return the device on which a posterior of any kind takes its inputs."""
    return posterior._device
