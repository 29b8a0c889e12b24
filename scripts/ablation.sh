#!/usr/bin/env bash
# What each part of chorus is worth: bash scripts/ablation.sh [FLAGS...] [-- FLAGS OF main.py...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
python examples/ablation.py "$@"
