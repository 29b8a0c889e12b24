#!/usr/bin/env bash
# Main results, one image set and one architecture: bash scripts/mr.sh [METHOD] [FLAGS...], for example  bash scripts/mr.sh free --num_sup_train 5
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [free]="--dataset cifar100 --backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --epochs 1000 --inner_lr 0.01 --outer_lr 0.001 --Glr 0.001"
)
run_row "$@"
