#!/usr/bin/env bash
# DAFL as Fast-Datafree's repository runs it: bash scripts/dafl_cifar.sh [FLAGS...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [dafl]="--method dafl --dataset cifar10 --batch_size 256 --teacher wrn40_2 --student wrn16_1 --lr 0.1 --epochs 200 --kd_steps 5 --ep_steps 400 --g_steps 1 --lr_g 1e-3 --adv 0 --T 20 --bn 0 --oh 1 --act 0.001 --balance 20"
)
run_named dafl "$@"
