#!/usr/bin/env bash
# PURER, CIFAR-FS, 5-way 5-shot, conv4, as in the paper's repository: bash scripts/cifar_55_conv4.sh [FLAGS...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/cifar_51_conv4.sh" --num_sup_train 5 --num_sup_test 5 --synthesis_per_class 20 "$@"
