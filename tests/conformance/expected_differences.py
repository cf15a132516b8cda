"""Where JNPE differs from NPE, by the start of the test's name, and why."""

_MIXTURES = (
    "Mixture density networks have no reparameterised samples, which the reverse KL "
    "divergence needs; JNPE refuses them with an error that says so."
)
_INVALID = (
    "sbi's losses of later rounds compare the pairs of a batch, and biased if some are "
    "left out. JNPE's are not, as the mixture counts all parameters that were drawn."
)
_SHARED = (
    "sbi refuses a proposal that shares its networks with the trainer. JNPE takes the "
    "proposal's densities when simulations are appended, so later training can't change "
    "them."
)
_LOOP = (
    "The test scripts sbi's private `_validate_epoch`, part of the loop that JNPE "
    "replaces, and expects one epoch more than `max_num_epochs`."
)
_BUILDERS = (
    "density_estimator_test.py::test_trainers_with_valid_and_invalid_estimator_builders"
)
_NAN = "inference_with_NaN_simulator_test.py"

EXPECTED_DIFFERENCES: dict[str, str] = {
    f"{_BUILDERS}[params1-JNPE]": _MIXTURES,
    f"{_BUILDERS}[params11-JNPE]": (
        "The builder returns None. The test wants the AttributeError that this leads to "
        "in sbi; JNPE raises a TypeError that names `density_estimator`."
    ),
    "linearGaussian_snpe_test.py::test_mdn_conditional_density": _MIXTURES,
    f"{_NAN}::test_multiround_raises_on_invalid_x[JNPE]": _INVALID,
    f"{_NAN}::test_multiround_npe_c_warns_when_excluding_invalid_x": _INVALID,
    f"{_NAN}::test_npe_c_checks_the_current_proposal_not_the_previous_round": _MIXTURES,
    "user_input_checks_test.py::test_proposal_sharing_weights": _SHARED,
    **{
        f"embedding_net_test.py::{test}[": f"{_MIXTURES} The test trains 'mdn'."
        for test in (
            "test_1d_fc_embedding_net",
            "test_1d_ResNet_fc_embedding_net",
            "test_1d_causal_cnn_embedding_net",
            "test_spectral_conf_embedding",
            "test_transformer_embedding",
            "test_transformer_embedding_scalar_timeseries",
            "test_transformer_vitembedding",
        )
    },
    "base_test.py::test_exhausted_epoch_budget_returns_the_best_weights": _LOOP,
}
