"""What grows with what: `python -m benchmarks.growth [--only METHOD ...] [--out FOLDER]`.

Short runs of each method with stand-in teachers, drawn and never trained: of one thing after another there is more (teachers,
classes, pixels, episodes of an update), and the rest stays. A line shows what a run took until its first iteration was done,
what another takes, and the most memory that the process held. growth.json and growth.png stand in the folder. Steps and images
are few: what counts is how a column grows, not how large it is.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import name_of
from datasets.registry import CIFAR
from methods.runs.run_log import read_metrics
from methods.teachers.manifest import TeacherRow, write_manifest
from models import create_model
from utils import checkpoint, cli
from utils.errors import UserError
from utils.files import write_text
from utils.plots import new_figure, save_figure
from utils.tables import table

ROOT = Path(__file__).resolve().parents[1]
USUAL = {"teachers": 20, "classes": 64, "pixels": 32, "episodes": 4}
MORE = {"teachers": (20, 100, 1000), "classes": (64, 228, 1000), "pixels": (32, 84, 224), "episodes": (4, 10, 40)}
FEW = "--settings quick --select_on last --threads 1 --device cpu --metalearner maml"
METHODS = {
    "free": "--epochs 4 --inversion_steps 2 --num_qur_kd 16 --patience 1",
    "purer": "--candidate_size 13 --no_adv --episode_train {updates} --synthesis_per_class 16",
    "chorus": "--settings paper --metalearner ncm --black_box --num_images 512 --batch_size 128 --epochs 3",
}
KNOW_ALL = 200  # teachers know all of a thousand classes
UPDATES = 4  # of PURER, whose length is typed in episodes


def stand_ins(folder: Path, teachers: int, classes: int, pixels: int) -> Path:
    """A list of teachers of five classes each that know all `classes` together, where they are enough."""
    order, rows = torch.randperm(classes).tolist(), []
    for number in range(teachers):
        ids = [order[(5 * number + place) % classes] for place in range(5)]
        path = folder / f"teacher_{number:04d}.pth"
        torch.manual_seed(number)
        checkpoint.save({"state_dict": create_model("conv4", 5, pixels).state_dict()}, path)
        names = tuple(f"class {class_id:04d}" for class_id in ids)
        rows.append(TeacherRow(path, "conv4", tuple(range(5)), names, pixels, *CIFAR, "stand-in"))
    write_manifest(rows, folder / "teachers.csv")
    return folder / "teachers.csv"


def measured(method: str, teachers: Path, pixels: int, episodes: int, out: Path) -> dict[str, float]:
    """Seconds to the end of the first iteration, of another, and the most memory in MB. `UserError` for a run that fails."""
    flags = METHODS[method].format(updates=UPDATES * episodes)
    place = f"--teachers {teachers} --image_size {pixels} --episode_batch {episodes} --out {out} --run_name mine"
    command = [sys.executable, "main.py", "--method", method, *f"{FEW} {flags} {place}".split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as said:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(job.pid, 0)
        if status:
            said.seek(0)
            raise UserError(f"{' '.join(command)} failed: {said.read()[-1000:]}")
    ends = [line["seconds"] for line in read_metrics(out / "mine" / "metrics.jsonl")]
    pace = median(after - before for before, after in pairwise(ends))
    return {"first": ends[0], "iteration": pace, "megabytes": used.ru_maxrss / 1024}


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each thing that grows and each measure: a curve for each method, both axes logarithmic."""
    measures = {"iteration": "s an iteration", "megabytes": "MB at most"}
    from matplotlib.ticker import LogLocator, ScalarFormatter  # slow to import

    drawn = new_figure(3 * len(MORE), 2.5 * len(measures))
    panels = drawn.subplots(len(measures), len(MORE), sharey="row", squeeze=False)
    for row, (measure, unit) in enumerate(measures.items()):
        for column, thing in enumerate(MORE):
            axes = panels[row][column]
            for method in METHODS:
                some = [line for line in lines if line["method"] == method and line["grows"] == thing]
                axes.plot([line[thing] for line in some], [line[measure] for line in some], "o-", label=method)
            axes.set(xscale="log", yscale="log", xlabel=thing, ylabel=unit if column == 0 else "")
            values = sorted({line[thing] for line in lines if line["grows"] == thing})
            axes.set_xticks(values, values)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.minorticks_off()
    panels[0][0].legend()
    save_figure(drawn, path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), help="these methods alone")
    parser.add_argument("--things", nargs="+", choices=tuple(MORE), default=tuple(MORE), help="of which there is more")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), help="the folder of growth.json and growth.png")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    about = {"machine": name_of(torch.device("cpu")), "torch": torch.__version__, "lines": lines}
    for thing, value in [(one, value) for one in args.things for value in MORE[one]]:
        sizes = USUAL | {thing: value} | ({"teachers": KNOW_ALL} if thing == "classes" else {})
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            teachers = stand_ins(folder, sizes["teachers"], sizes["classes"], sizes["pixels"])
            for method in args.only:
                found = measured(method, teachers, sizes["pixels"], sizes["episodes"], folder / method)
                lines.append({"method": method, "grows": thing, **sizes, **found})
                print(f"{thing} {value}, {method}: {', '.join(f'{key} {found[key]:.3g}' for key in found)}", flush=True)
                write_text(args.out / "growth.json", json.dumps(about, indent=2) + "\n")  # nothing is lost by a stop
    draw(lines, args.out / "growth.png")
    rows = [
        [
            line["grows"],
            str(line[line["grows"]]),
            line["method"],
            *(f"{line[key]:.3g}" for key in ("first", "iteration", "megabytes")),
        ]
        for line in lines
    ]
    print(table(["more", "", "method", "first, s", "iteration, s", "MB"], rows))


if __name__ == "__main__":
    cli.exit_with_message(main)
