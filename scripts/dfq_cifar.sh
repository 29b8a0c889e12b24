#!/usr/bin/env bash
# DFQ as Fast-Datafree's repository runs it: bash scripts/dfq_cifar.sh [FLAGS...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [dfq]="--method dfq --dataset cifar10 --batch_size 256 --teacher wrn40_2 --student wrn16_1 --lr 0.1 --epochs 200 --kd_steps 10 --ep_steps 400 --g_steps 1 --lr_g 1e-3 --adv 1 --T 20 --bn 1 --oh 1 --act 0 --balance 20"
)
run_named dfq "$@"
