#!/usr/bin/env bash
# What test.sh leaves out: rows marked slow, and the numeric rooms as another processor would compute. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/test.sh -m slow "$@"
ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default bash scripts/test.sh tests/methods tests/models tests/reference \
    tests/test_main.py::test_every_method_in_every_scenario tests/test_main.py::test_a_killed_run_goes_on_bit_for_bit \
    --ignore tests/methods/runs -k "not services and not zoo" "$@"
