#!/usr/bin/env bash
# PURER, CIFAR-FS, 5-way 1-shot, conv4, as in the paper's repository: bash scripts/cifar_51_conv4.sh [FLAGS...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
python main.py --method purer --dataset cifar100 --way_train 5 --num_sup_train 1 --num_qur_train 15 \
    --way_test 5 --num_sup_test 1 --num_qur_test 15 --backbone conv4 --pre_backbone conv4 --episode_train 240000 \
    --inner_update_num 1 --test_inner_update_num 1 --episode_batch 4 --val_interval 2000 \
    --synthesis_per_class 16 --adv --average --adv_start 4000 --adv_scale 10.0 "$@"
