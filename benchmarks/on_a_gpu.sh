#!/usr/bin/env bash
# What needs a GPU, in at most ten minutes: the gpu tests, a step's profile, two trainings.
#
#     benchmarks/on_a_gpu.sh [FOLDER]
#
# Run it in a clone, in an environment with the benchmarks' requirements. Pages are written
# to FOLDER, by default results/gpu.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-results/gpu}
limit=$((SECONDS + 600))

limited() { # a command, for as long as there is time left
    timeout "$((limit - SECONDS))" "$@"
}

limited python -m pytest -q -m gpu
limited python -m benchmarks speed --device cuda --parts step breakdown --rounds 1 \
    --output "$folder/speed.md"
limited python -m benchmarks cost --device cuda --tasks two_moons gaussian_linear \
    --methods npe_nsf jnpe --budgets 1000 --seeds 0 --output "$folder/cost"
