#!/usr/bin/env bash
# Run the tests: makes the environment where needed, then pytest. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt requirements-dev.txt
python -m pytest "$@"
