#!/usr/bin/env bash
# Teachers behind a server that nobody here wrote: MLServer serves classifiers of letters, and nothing is had of them but its
# answers. It needs Python below 3.13 (PYTHON=python3.12 bash scripts/services_demo.sh) and runs until the demo ends.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
services_environment
SECONDS=0
port="${PORT:-8080}" repository=runs/mlserver
common="--teachers $repository/zoo.csv --dataset glyphs --episode_val 100 --episode_test 200"
echo "1/4  letters, and four classifiers of them"
python write_file/write_glyphs_filelist.py
python pretrain.py --dataset glyphs --pre_model_num 8 --pretrain_epochs 15
echo "2/4  MLServer at http://127.0.0.1:$port"
python examples/mlserver_repository.py "$repository" --port "$port" --count 4 \
    --teachers DFL2Ldata/teachers/glyphs/conv4/5way/teachers.csv
PYTHONPATH="$PWD:$PWD/examples" .venv-services/bin/mlserver start "$repository" > "$repository/server.log" 2>&1 &
server=$!
trap 'kill $server' EXIT
until python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$port/v2/health/ready')" 2>/dev/null; do
    kill -0 "$server" || { tail -5 "$repository/server.log"; exit 2; }
    sleep 0.5
done
python -m methods.teachers check "$repository/zoo.csv"
echo "3/4  what its answers are worth as they are, and one learner that has heard them"
once services-ncm --method teacher_ncm $common --ncm_on answers "$@"
once services-chorus --method chorus --black_box $common --num_images 6000 --epochs 8 --val_interval 8 "$@"
echo "4/4  side by side"
python -m methods.runs.compare runs/services-ncm runs/services-chorus --out runs/services.png
echo "$SECONDS seconds. What was asked is in runs/services-chorus/asked.jsonl; what was answered is not asked again."
