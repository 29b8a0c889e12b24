#!/usr/bin/env bash
# Fast-Datafree on ImageNet as its published logs have it, with torchvision's weights as teacher: bash scripts/fast_imagenet.sh [r50-r50|r50-r18|r50-mv2] [FLAGS...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
common="--method fast_meta --dataset imagenet --pretrained --teacher resnet50_imagenet --batch_size 100 --lr 0.1 --g_steps 50 --lr_g 2e-4 --lr_z 0.01 --bn 0.1 --oh 0.1 --bn_mmt 0.9 --is_maml 0 --reset_l0 0 --warmup 0 --epochs 400 --kd_steps 100 --ep_steps 1000 --T 5"
declare -A ROW=(
    [r50-r50]="$common --adv 0.1 --student resnet50_imagenet"
    [r50-r18]="$common --adv 1.0 --student resnet18_imagenet"
    [r50-mv2]="$common --adv 0.1 --student mobilenetv2_imagenet"
)
run_named r50-r50 "$@"
