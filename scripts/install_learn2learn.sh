#!/usr/bin/env bash
# Build learn2learn 0.2.0 for the cross-check of the meta-gradients; pip alone cannot since Python 3.11.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
python -m pip install --quiet --disable-pip-version-check -r requirements-learn2learn.txt
python -m pip install --quiet --disable-pip-version-check --use-pep517 --no-build-isolation --no-deps \
    --config-settings=--build-option=build_ext learn2learn==0.2.0
python -W ignore -c 'from utils.vision import import_torchvision; import_torchvision(); import learn2learn; print("learn2learn", learn2learn.__version__, "is ready")' 2>/dev/null
