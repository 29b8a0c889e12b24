#!/usr/bin/env bash
# The tests that need a graphics card, on the first one there is. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TESTS_ON="${TESTS_ON:-cuda:0}" bash scripts/test.sh tests/test_card.py --maxprocesses 1 "$@"
