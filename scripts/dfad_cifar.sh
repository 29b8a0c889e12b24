#!/usr/bin/env bash
# DFAD as Fast-Datafree's repository runs it: bash scripts/dfad_cifar.sh [FLAGS...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [dfad]="--method dfad --dataset cifar10 --batch_size 256 --teacher wrn40_2 --student wrn16_1 --lr 0.1 --epochs 200 --kd_steps 5 --ep_steps 400 --g_steps 1 --lr_g 1e-3 --adv 1 --T 1 --bn 0 --oh 0 --act 0 --balance 0"
)
run_named dfad "$@"
