#!/usr/bin/env bash
# Multi-architecture, conv4, resnet10 and resnet18 teachers: bash scripts/ma.sh [METHOD] [FLAGS...], for example  bash scripts/ma.sh free --num_sup_train 5
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [free]="--dataset cifar100 --pre_backbone mix --backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --epochs 1000 --inner_lr 0.01 --outer_lr 0.001 --Glr 0.001"
    [purer]="--dataset cifar100 --pre_backbone mix --backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --episode_train 240000 --inner_update_num 1 --test_inner_update_num 1 --synthesis_per_class 16 --adv --average --adv_start 4000 --adv_scale 10.0"
    [tgr]="--dataset cifar100 --pre_backbone mix --backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --epochs 1000 --inner_lr 0.01 --outer_lr 0.001 --Glr 0.001"
    [chorus]="--dataset cifar100 --backbone conv4 --pre_backbone mix --way_test 5"
)
run_row "$@"
