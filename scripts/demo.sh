#!/usr/bin/env bash
# The whole way on letters: draw an image set, train 8 teachers, forget the images, meta-train two learners without them, set
# them side by side, and tell letters of a new script apart. Finished steps are kept, so it can be run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
SECONDS=0
common="--dataset glyphs --pre_model_num 8 --episode_val 100"
echo "1/5  glyphs: letters of five scripts, drawn with the typefaces inside matplotlib"
python write_file/write_glyphs_filelist.py
echo "2/5  teachers: 8 classifiers of 5 letters each; from here on nobody sees their images"
python pretrain.py --dataset glyphs --pre_model_num 8 --pretrain_epochs 15
echo "3/5  FREE: invert the teachers, and meta-train a learner on what comes back (few iterations; the paper takes 1000)"
once demo-free --method free $common --metalearner protonet --epochs 4 --warmup 0 --inversion_steps 20 --Glr 5e-3 --zlr 1e-2 \
    --bn 0.03 --adv 0 --meta_grad sum --num_qur_kd 10 --patience 20 --augment --val_interval 2 "$@"
echo "4/5  chorus: ask all teachers about images that nobody took, and teach one learner their answers"
once demo-chorus --method chorus $common --num_images 6000 --epochs 8 --val_interval 8 "$@"
echo "5/5  side by side, and five letters of a script that nobody has seen, from five examples each"
python -m methods.runs.compare runs/demo-free runs/demo-chorus --out runs/demo.png
for folder in $(ls -d DFL2Ldata/glyphs/meta_test/*/ | head -5); do
    known="runs/demo-letters/known/$(basename "$folder")" asked="runs/demo-letters/asked/$(basename "$folder")"
    mkdir -p "$known" "$asked"
    cp "$folder"000[0-4].png "$known"
    cp "$folder"001?.png "$asked"
done
python -m methods.predict --run runs/demo-chorus --support runs/demo-letters/known --query runs/demo-letters/asked \
    --out runs/demo-letters/predictions.csv
python -m utils.report runs/demo-free runs/demo-chorus --out runs/demo.html
echo "$SECONDS seconds. Look at runs/demo.html (all on one page), runs/demo.png, and the images below runs/demo-*/images."
