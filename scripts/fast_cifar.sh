#!/usr/bin/env bash
# Fast-Datafree on CIFAR-100: bash scripts/fast_cifar.sh [PAIR-STEPS|--all] [FLAGS...], for example  bash scripts/fast_cifar.sh r34-2
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
# pairs: r34 (resnet34 to resnet18), vgg (vgg11 to resnet18), wrn, wrnS401, wrnS162 (wrn40_2 to wrn16_1, wrn40_1, wrn16_2)
common="--method fast_meta --dataset cifar100 --batch_size 256 --lr 0.2 --kd_steps 400 --ep_steps 400 --bn 10.0 --act 0 --balance 0 --T 20 --bn_mmt 0.9 --warmup 20 --epochs 220 --is_maml 1 --reset_l0 1 --reset_bn 0"
declare -A PAIR=(
    [r34]="--teacher resnet34 --student resnet18 --adv 1.33 --oh 0.5"
    [vgg]="--teacher vgg11 --student resnet18 --adv 1.0 --oh 0.5"
    [wrn]="--teacher wrn40_2 --student wrn16_1 --adv 1.1 --oh 0.4"
    [wrnS401]="--teacher wrn40_2 --student wrn40_1 --adv 1.1 --oh 0.4"
    [wrnS162]="--teacher wrn40_2 --student wrn16_2 --adv 1.1 --oh 0.4"
)
declare -A STEPS=(
    [2]="--g_steps 2 --lr_z 0.015 --lr_g 5e-3"
    [5]="--g_steps 5 --lr_z 0.01 --lr_g 3e-3"
    [10]="--g_steps 10 --lr_z 0.01 --lr_g 2e-3"
)
declare -A ROW
for pair in "${!PAIR[@]}"; do
    for steps in "${!STEPS[@]}"; do
        ROW[$pair-$steps]="$common ${PAIR[$pair]} ${STEPS[$steps]} --save_dir run/$pair-$steps --log_tag $pair-$steps"
    done
done
run_named wrn-5 "$@"
