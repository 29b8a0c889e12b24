#!/usr/bin/env bash
# PURER-Plus, CIFAR-FS, 5-way 5-shot, as in its repository: bash scripts/metatrain.sh [FLAGS...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
python main.py --method purer --candidate_size 13 --teacherMethod protonet --Glr 0.01 \
    --dataset cifar100 --testdataset cifar100 --way_train 5 --num_sup_train 5 --num_qur_train 15 \
    --way_test 5 --num_sup_test 5 --num_qur_test 15 --backbone conv4 --pre_backbone conv4 --way_pretrain 5 --APInum 100 \
    --episode_train 240000 --episode_batch 4 --val_interval 2000 --inner_update_num 5 --test_inner_update_num 10 "$@"
