#!/usr/bin/env bash
# Real networks on images of yours: bash scripts/real_zoo.sh FOLDER [FLAGS...]
# FOLDER/<class>/ holds images of 5 to 14 classes, which are all tested, or of 25 and more, of which a fifth is. What three
# ImageNet classifiers are worth as they are, and what one small learner takes from them without their data. 5-way 5-shot;
# the flags go to both runs.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -d "$1" ]; then
    echo "usage: bash scripts/real_zoo.sh FOLDER [FLAGS...], with FOLDER/<class>/<image>" >&2
    exit 2
fi
images="$(cd "$1" && pwd)"
shift
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt requirements-real-zoo.txt
zoo=runs/real_zoo
python examples/real_zoo.py "$zoo"
allowed="--allow_code real_zoo:lite0 real_zoo:lite1 real_zoo:lite2"
common=(--teachers "$zoo/zoo.csv" $allowed --testdataset "$images" --image_size 84 --num_sup_train 5 --select_on last)
name="$(basename "$images")-$(printf '%s' "$images $*" | cksum | cut -d' ' -f1)" # other images or flags are another run
python -m methods.teachers check "$zoo/zoo.csv" $allowed
once "real-ncm-$name" --method teacher_ncm "${common[@]}" "$@"
once "real-chorus-$name" --method chorus "${common[@]}" --black_box --num_images 6000 --epochs 20 --val_interval 5 "$@"
python -m methods.runs.compare "runs/real-ncm-$name" "runs/real-chorus-$name" --out "runs/real-$name.png"
