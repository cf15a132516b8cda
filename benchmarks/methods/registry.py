"""The methods by name, and the training that each comes from."""

from sbi.inference import FMPE, NLE

from benchmarks.methods.jnpe import JNPETraining
from benchmarks.methods.npe import (
    EnsembleTraining,
    NPETraining,
    OtherTraining,
    PreparedNPETraining,
    RegularizedNPE,
)
from benchmarks.methods.training import Training

_NSF = NPETraining("npe_nsf", "nsf")

TRAININGS: dict[str, Training] = {
    "npe_maf": NPETraining("npe_maf", "maf"),
    "npe_nsf": _NSF,
    "npe_nsf_prepared": PreparedNPETraining("npe_nsf_prepared"),
    "npe_nsf_ensemble": EnsembleTraining("npe_nsf_ensemble", _NSF),
    "npe_nsf_regularized": NPETraining(
        "npe_nsf_regularized", "nsf", RegularizedNPE, dropout_probability=0.2
    ),
    "fmpe": OtherTraining("fmpe", FMPE),
    "nle": OtherTraining("nle", NLE),
    "jnpe": JNPETraining("jnpe"),
    "jnpe_fixed": JNPETraining("jnpe_fixed", weighting="fixed"),
}
METHODS = {
    method: name for name, training in TRAININGS.items() for method in training.methods
}
"""The training that each method comes from."""
