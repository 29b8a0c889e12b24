#!/usr/bin/env bash
# Train the teachers: bash scripts/pretrain.sh [METHOD] [--for mr|md|ma|ss|sh|mh] [FLAGS...]. Finished teachers are skipped.
# Without --for: the pool of METHOD's own pretrain.sh; with it: every pool that the scenario needs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
declare -A ROW=(
    [free]="--dataset cifar100 --way_pretrain 5 --pre_backbone conv4"
    [purer]="--dataset cifar100 --num_class_per_task 5 --pre_backbone conv4"
    [purer_plus]="--dataset cifar100 --way_pretrain 5 --pre_backbone conv4"
    [tgr]="--dataset miniimagenet --way_pretrain 5 --pre_backbone conv4"
    [bidf_mkd]="--dataset cifar100 --way_pretrain 5 --pre_backbone conv4"
)
declare -A SCENARIO=(
    [mr]="--dataset cifar100 --pre_backbone conv4"
    [md]="--dataset mix --pre_backbone conv4"
    [ma]="--dataset cifar100 --pre_backbone mix"
    [ss]="--dataset cifar100 --pre_backbone conv4"
    [sh]="--dataset cifar100 --pre_backbone mix"
    [mh]="--dataset mix --pre_backbone mix"
)
method=free
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
    method="$1"
    shift
fi
words="${ROW[$method]:-}"
if [ -z "$words" ]; then
    echo "error: no row for $method; there are: ${!ROW[*]}" >&2
    exit 2
fi
if [ "${1:-}" = "--for" ]; then
    scenario="${SCENARIO[${2:-none}]:-}"
    if [ -z "$scenario" ]; then
        echo "error: --for ${2:-}: expected one of ${!SCENARIO[*]}" >&2
        exit 2
    fi
    words="$words $scenario"
    shift 2
fi
# shellcheck disable=SC2086  # a row is a list of words
python pretrain.py $words "$@"
