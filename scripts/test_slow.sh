#!/usr/bin/env bash
# What test.sh leaves out: rows marked slow, and the numeric rooms as another processor would compute. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/test.sh -m slow "$@"
ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default bash scripts/test.sh tests/methods tests/models tests/test_main.py \
    -k "not commands and not serve and not services and not zoo" "$@"
