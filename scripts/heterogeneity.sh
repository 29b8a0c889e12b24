#!/usr/bin/env bash
# Accuracy against how unlike two teachers are (shared classes, architectures), as TGR's paper asks:
# bash scripts/heterogeneity.sh [FLAGS...] [-- FLAGS OF main.py...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
python examples/heterogeneity.py "$@"
