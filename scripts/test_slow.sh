#!/usr/bin/env bash
# What test.sh leaves out: rows marked slow, and the numeric rooms as another processor would compute. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash test.sh -m slow "$@"
ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default bash test.sh -m "not slow" tests/methods tests/models tests/test_main.py \
    -k "not commands and not scripts and not server and not zoo" "$@"
