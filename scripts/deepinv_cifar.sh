#!/usr/bin/env bash
# DeepInversion as Fast-Datafree's repository runs it: bash scripts/deepinv_cifar.sh [deepinv|deepinv_fast|--all] [FLAGS...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
common="--method deepinv --dataset cifar10 --batch_size 256 --teacher wrn40_2 --student wrn16_1 --lr 0.1 --epochs 200 --adv 1 --bn 10 --oh 1 --T 20 --act 0 --balance 0"
declare -A ROW=(
    [deepinv]="$common --kd_steps 400 --ep_steps 400 --g_steps 1000 --lr_g 0.1 --save_dir run/deepinv --log_tag deepinv"
    [deepinv_fast]="$common --kd_steps 200 --ep_steps 200 --g_steps 10 --lr_g 1 --save_dir run/deepinv_fast --log_tag deepinv_fast"
)
run_named deepinv "$@"
