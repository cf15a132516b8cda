"""Does an installed package work? Run where no source is: `python smoke.py`."""

import sys
from importlib.metadata import metadata, version
from pathlib import Path

import torch
from sbi.utils import BoxUniform

import sbi_jeffreys
from sbi_jeffreys import JNPE, plots, to_inference_data

folder = Path(sbi_jeffreys.__file__).parent
assert folder.is_relative_to(sys.prefix), f"{folder} is not that of the environment"
assert (folder / "py.typed").exists()
assert sbi_jeffreys.__version__ == version("sbi_jeffreys")
about = metadata("sbi_jeffreys")
assert about["Author"] == "sbi_jeffreys maintainers"
assert "Typing :: Typed" in about.get_all("Classifier")

prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((100,))
trainer = JNPE(prior, show_progress_bars=False, pool=False)
trainer.append_simulations(theta, theta + 0.1 * torch.randn(100, 2))
trainer.train(max_num_epochs=2)
data = to_inference_data(
    trainer.build_posterior(), theta[0], num_samples=100, show_progress_bars=False
)
plots.plot_densities(data).savefig("densities.png")
assert not Path("sbi-logs").exists()
print(f"sbi_jeffreys {version('sbi_jeffreys')}: {type(data).__name__}, arviz", end=" ")
print(version("arviz"), "Python", sys.version.split()[0])
