#!/usr/bin/env bash
# The whole way on letters: draw the image set, train 8 teachers, forget the images, run FREE, judge it.
# Six minutes on two CPU cores and two for the install; finished steps are kept, so it can be run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
echo "1/3  glyphs: letters of five scripts, drawn with the typefaces inside matplotlib"
python write_file/write_glyphs_filelist.py
echo "2/3  teachers: 8 classifiers of 5 letters each"
python pretrain.py --dataset glyphs --pre_model_num 8 --pretrain_epochs 15
echo "3/3  FREE: invert the teachers and meta-train a learner on what comes back"
# ProtoNet instead of MAML, few iterations with more inversion steps, and augmented replay: tuned to be quick on a laptop
python main.py --method free --dataset glyphs --pre_model_num 8 --metalearner protonet \
    --epochs 9 --warmup 0 --inversion_steps 30 --Glr 5e-3 --zlr 1e-2 --bn 0.03 --adv 0 --meta_grad sum \
    --num_qur_kd 10 --patience 20 --augment --val_interval 3 --episode_val 100 --judge "$@"
echo "look at images/recovered_*.png in that folder; python main.py --evaluate runs/free-glyphs-5w1s-conv4 scores its learner again"
