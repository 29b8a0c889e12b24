#!/usr/bin/env bash
# One architecture, one image set, black-box teachers: bash scripts/ss.sh [FLAGS...], for example  bash scripts/ss.sh --num_sup_train 5
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [bidf_mkd]="--dataset cifar100 --backbone conv4 --pre_backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --episode_train 240000 --num_sup_kd 30 --num_qur_kd 30 --inner_update_num_kd 10 --adv 1 --advstartit 4000 --generate_interval 200 --generate_iterations 200 --Glr 0.001 --ZO --mu 0.005 --q 100 --numsplit 5"
)
run_row bidf_mkd "$@"
