#!/usr/bin/env bash
# Run the tests, making an environment where none is active. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt requirements-dev.txt
echo "running the tests"
python -m pytest "$@"
