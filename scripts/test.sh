#!/usr/bin/env bash
# Run the tests on all cores, making an environment where none is active. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # of each worker
export TQDM_DISABLE="${TQDM_DISABLE:-1}" # bars of thousands of tiny runs, which nobody sees
echo "running the tests"
python -m pytest -n auto --maxprocesses 8 "$@"
