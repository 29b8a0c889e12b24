#!/usr/bin/env bash
# CMI as Fast-Datafree's repository runs it: bash scripts/cmi_cifar.sh [cmi|cmi_fast_cifar100_5|--all] [FLAGS...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
common="--method cmi --batch_size 256 --teacher wrn40_2 --student wrn16_1 --lr 0.1 --kd_steps 400 --ep_steps 400 --lr_g 1e-3 --adv 0.5 --bn 1.0 --oh 1.0 --cr_T 0.2 --act 0 --balance 0 --T 20"
declare -A ROW=(
    [cmi]="$common --dataset cifar10 --g_steps 200 --cr 0.8 --save_dir run/cmi --log_tag cmi"
    [cmi_fast_cifar100_5]="$common --dataset cifar100 --g_steps 5 --cr 0 --save_dir run/cmi_fast_cifar100_5 --log_tag cmi_fast_cifar100_5"
)
run_named cmi "$@"
