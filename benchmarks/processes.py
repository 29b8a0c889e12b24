"""What a second process brings: `python -m benchmarks.processes [--processes 2] [--rounds 3] [--only METHOD ...]`.

The same small run of each method by one process and by several of `torchrun`, one thread each, in turn, A B A B, on drawn
letters and freshly drawn teachers; a line shows the medians of what the runs themselves say they took, and their ratio.
Give it a machine with nothing else to do and as many cores as processes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

import pretrain
from models import create_classifier
from utils import checkpoint, cli
from utils.errors import UserError
from utils.tables import table
from write_file import write_glyphs_filelist

ROOT = Path(__file__).resolve().parents[1]
EXAM = "--episode_val 20 --episode_test 100 --no_floors"
FEW_SHOT = f"--dataset glyphs --pre_model_num 4 --settings quick {EXAM}"
DISTILLED = "--settings quick --dataset cifar10 --num_classes 10 --image_size 32 --teacher wrn16_1 --student wrn16_1"
WORK = {  # method -> the flags of a run of some seconds
    "free": f"{FEW_SHOT} --epochs 1",
    "tgr": f"{FEW_SHOT} --epochs 2 --probe_images 50",
    "purer": f"{FEW_SHOT} --candidate_size 4 --no_adv --episode_train 80",
    "chorus": f"{FEW_SHOT} --num_images 2000 --epochs 1",
    "real": f"{FEW_SHOT} --epochs 40",
    "fast_meta": f"{DISTILLED} --epochs 2 --warmup 0",
}


def prepare(data_root: Path) -> None:
    """Letters, four teachers of one epoch, and a classifier as it was drawn."""
    write_glyphs_filelist.main(["--data_root", str(data_root), "--images", "60"])
    pretrain.main(f"--data_root {data_root} --dataset glyphs --pre_model_num 4 --pretrain_epochs 1 --threads 1".split())
    network = create_classifier("wrn16_1", 10, 32)
    checkpoint.save({"state_dict": network.state_dict()}, data_root / "wrn16_1.pth")


def seconds_of_run(method: str, processes: int, data_root: Path, out: Path) -> float:
    """What the run says it took, without the start of Python. Raises `UserError` where it fails."""
    place = f"--data_root {data_root} --out {out} --run_name mine --threads 1 --device cpu"
    teacher = f"--teacher_ckpt {data_root / 'wrn16_1.pth'}" if method == "fast_meta" else ""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *start, "main.py", "--method", method, *f"{WORK[method]} {teacher} {place}".split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    job = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if job.returncode:
        raise UserError(f"{' '.join(command)} failed: {job.stderr[-1000:]}")
    return float(json.loads((out / "mine" / "result.json").read_text(encoding="utf-8"))["seconds"]["total"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--processes", type=cli.count, default=2, help="how many, beside one")
    parser.add_argument("--rounds", type=cli.count, default=3, help="runs of each, of which the medians count")
    parser.add_argument("--only", nargs="+", choices=tuple(WORK), default=tuple(WORK), help="these methods alone")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder)
        prepare(data_root)
        for method in args.only:
            pairs = [
                [
                    seconds_of_run(method, count, data_root, data_root / f"{method}-{turn}-{count}")
                    for count in (1, args.processes)
                ]
                for turn in range(args.rounds)
            ]
            one, several = (median(times) for times in zip(*pairs, strict=True))
            lines.append([method, f"{one:.1f}", f"{several:.1f}", f"{median(a / b for a, b in pairs):.2f}"])
            print(table(["method", "one process, s", f"{args.processes} processes, s", "ratio"], lines[-1:]), flush=True)
    print("\n" + table(["method", "one process, s", f"{args.processes} processes, s", "ratio"], lines))


if __name__ == "__main__":
    cli.exit_with_message(main)
