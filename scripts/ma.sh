#!/usr/bin/env bash
# Multi-architecture, conv4, resnet10 and resnet18 teachers: bash scripts/ma.sh [METHOD] [FLAGS...], for example  bash scripts/ma.sh free --num_sup_train 5
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [free]="--dataset cifar100 --pre_backbone mix --backbone conv4 --way_train 5 --num_sup_train 1 --way_test 5 --epochs 1000 --inner_lr 0.01 --outer_lr 0.001 --Glr 0.001"
)
run_row "$@"
