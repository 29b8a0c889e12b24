#!/usr/bin/env bash
# Main results, one image set and one architecture: bash scripts/mr.sh [METHOD] [FLAGS...], for example  bash scripts/mr.sh free --num_sup_train 5
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [free]="--dataset cifar100 --backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --epochs 1000 --inner_lr 0.01 --outer_lr 0.001 --Glr 0.001"
    [purer]="--dataset cifar100 --backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --episode_train 240000 --inner_update_num 1 --test_inner_update_num 1 --synthesis_per_class 16 --adv --average --adv_start 4000 --adv_scale 10.0"
    [tgr]="--dataset miniimagenet --backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --epochs 1200 --inner_lr 0.01 --outer_lr 0.001 --Glr 0.001"
    [chorus]="--dataset cifar100 --backbone conv4 --way_test 5"
)
run_row "$@"
