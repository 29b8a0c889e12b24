"""What a graphics card needs: `python -m benchmarks.card --data_root DFL2Ldata`, again until it says that all is there.

A call works for --minutes at most and then stops in good order; the next one goes on where it stopped. What was measured
stands in card.json in the --work folder, beside the runs it comes from: an outer step and test episodes by themselves, FREE
with its teachers at the paper's settings to its end, and so many iterations of the other methods that their whole length can
be told. It needs the lists of CIFAR-FS, and for Fast-Datafree those of CIFAR-10 (docs/papers.md).
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import name_of, seconds_of
from datasets.episodes import make_episodes
from datasets.registry import CIFAR, DATA_ROOT
from methods.metalearners import get_metalearner
from methods.metalearners.base import COMPILER, Execution
from methods.metalearners.learner import Learner, LearnerSpec
from methods.metalearners.outer import OuterStep
from methods.runs.run_log import read_metrics
from utils import cli
from utils.errors import UserError
from utils.files import write_text
from utils.tables import table

ROOT = Path(__file__).resolve().parents[1]
FEWEST_SECONDS = 45  # that a piece is worth beginning for
WHOLE = "whole"
EXAM = "--episode_val 200 --episode_test 600"
WRN = "--teacher_ckpt {work}/wrn40_2.pth"
SHORT = "--no_floors --episode_test 100"


@dataclass(frozen=True)
class Job:
    """A command line that is begun, stopped and resumed: a run of main.py, or the training of teachers.

    of: the iterations of the whole run, where the command makes fewer of them.
    """

    name: str
    command: str
    of: int | None = None
    trains: bool = False  # pretrain.py, which goes on by itself with the teachers that are missing


def jobs(quick: bool) -> list[Job]:
    """In the order in which they are done: what needs teachers comes after them."""
    if quick:
        few = "--settings quick --dataset glyphs --pre_model_num 2 --episode_val 5 --episode_test 5 --no_floors"
        return [
            Job("two teachers", "--dataset glyphs --pre_model_num 2 --pretrain_epochs 1", trains=True),
            Job("FREE", f"--method free {few} --epochs 2 --teacher_batch 2 --inversion_steps 2 --patience 1 --num_qur_kd 16"),
            Job("PURER-Plus", f"--method purer {few} --candidate_size 2 --no_adv --episode_train 40 --episode_batch 4", 20),
        ]
    few_shot = "--dataset cifar100 --pre_model_num 100 --way_train 5 --num_sup_train 1"
    return [
        Job("100 conv4 teachers, 60 epochs", "--dataset cifar100 --pre_model_num 100", trains=True),
        Job("FREE, 1,000 iterations", f"--method free {few_shot} {EXAM}"),
        Job("TGR (ProtoNet)", f"--method tgr --metalearner protonet {few_shot} {SHORT} --epochs 20", 1200),
        Job("PURER-Plus", f"--method purer --candidate_size 13 {few_shot} {SHORT} --episode_train 2000", 60_000),
        Job("BiDf-MKD, black box", f"--method bidf_mkd --ZO {few_shot} {SHORT} --episode_train 800", 60_000),
        Job("a wrn40_2 for Fast-Datafree, 2 epochs", "--method scratch --model wrn40_2 --dataset cifar10 --epochs 2 " + WRN),
        Job(
            "Fast-Datafree, wrn40_2 to wrn16_1, 5 steps",
            "--method fast_meta --dataset cifar10 --teacher wrn40_2 --student wrn16_1 --g_steps 5 --epochs 6 --warmup 2 " + WRN,
            220,
        ),
    ]


# ------------------------------------------------------------ by themselves


def small_work(device: torch.device, quick: bool) -> dict[str, dict[str, Any]]:
    """Milliseconds of a second-order outer step of MAML on ten episodes, and of 600 test episodes of ten inner steps."""
    learner = Learner(LearnerSpec("conv4", 5, 32, *CIFAR), device)
    execution: Execution = "loop" if device.type == "cpu" else "vmap"
    maml = get_metalearner("maml")(learner.network, execution=execution)
    drawn, exam = (1, 2) if quick else (10, 600)

    def episodes(count: int) -> Any:
        images = torch.randn(count, 5 * 16, 3, 32, 32, device=device)
        return make_episodes(images[:, :5], images[:, 5:], 5)

    batch, test = episodes(drawn), episodes(exam)
    outer = OuterStep(learner, maml, 1e-3, 5)
    piece = get_metalearner("maml")(learner.network, execution=execution, compiler=COMPILER)
    compiled, step = OuterStep(learner, piece, 1e-3, 5), f"an outer step, second order, {drawn} episodes"

    def examine() -> None:
        with torch.no_grad():
            maml.in_chunks(test, lambda chunk: maml.outer_loss(learner.frozen, chunk, 10, create_graph=False)[1].tolist())

    work: dict[str, Callable[[], object]] = {step: lambda: outer.step(batch), f"{exam} test episodes": examine}
    if device.type != "cpu":  # nobody compiles for that
        work[f"{step}, compiled"] = lambda: compiled.step(batch)
    measured = {}
    for name, once in work.items():
        first = seconds_of(once, device)  # with all that is prepared but once
        measured[name] = {
            "ms": 1e3 * median(seconds_of(once, device) for _ in range(3 if quick else 15)),
            "first_ms": 1e3 * first,
        }
    if device.type != "cpu" and not piece.compiled:
        measured[f"{step}, compiled"] = {"failed": "this machine's PyTorch could not compile it"}
    return measured


# ------------------------------------------------------------ runs, in pieces


def command_of(job: Job, folder: Path, args: argparse.Namespace) -> list[str]:
    """The command line that begins `job`, or goes on with it."""
    machine = ["--device", args.device, "--threads", str(args.threads)]
    if (folder / "args.json").is_file():
        return [sys.executable, "main.py", "--resume", str(folder), *machine]
    place = ["--data_root", str(args.data_root), *machine]
    if job.trains:
        return [sys.executable, "pretrain.py", *job.command.split(), *place]
    out = ["--out", str(args.work), "--run_name", folder.name]
    return [sys.executable, "main.py", *job.command.format(work=args.work).split(), *place, *out]


def go_on(job: Job, folder: Path, args: argparse.Namespace, seconds: float) -> tuple[bool, float]:
    """Work on `job` for so many seconds; whether it is at its end, and what it took. Raises `UserError` where it fails."""
    start = time.perf_counter()
    with (args.work / "log.txt").open("a", encoding="utf-8") as log:
        running = subprocess.Popen(command_of(job, folder, args), cwd=ROOT, stdout=log, stderr=subprocess.PIPE, text=True)
        try:
            _, said = running.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
            _, said = running.communicate()
            return False, time.perf_counter() - start
    if running.returncode:
        raise UserError(f"{job.name}: {(said.strip().splitlines() or ['it ended without a word'])[-1]}")
    return True, time.perf_counter() - start


def figures_of(job: Job, folder: Path, spent: float) -> dict[str, Any]:
    """What a job that is at its end took: `seconds`, and where it was a part of a run, those of the `whole`, reckoned."""
    if job.trains:
        return {"seconds": spent, "iterations": WHOLE}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = read_metrics(folder / "metrics.jsonl")
    made = int(lines[-1]["iteration"])
    figures = {"seconds": result["seconds"]["total"], "iterations": WHOLE if job.of is None else made}
    if job.of is None:
        return figures | {name: score["mean"] for name, score in result["accuracy"].items()}
    half = lines[len(lines) // 2 - 1]  # what comes before it prepares, warms up and compiles
    pace = (lines[-1]["seconds"] - half["seconds"]) / (made - half["iteration"])
    return figures | {"of": job.of, "whole": lines[-1]["seconds"] + pace * (job.of - made)}


def rows(measured: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table that is printed: what, how long, and how much of the whole that was."""
    made = []
    for name, line in measured.items():
        if "ms" in line:
            made.append([name, f"{line['ms']:.2f} ms", "median"])
        elif "failed" in line:
            made.append([name, "", line["failed"]])
        elif line["iterations"] == WHOLE:
            made.append([name, f"{line['seconds'] / 60:.1f} min", WHOLE])
        else:
            part = f"reckoned from {line['iterations']} of {line['of']:,} iterations ({line['seconds'] / 60:.1f} min)"
            made.append([name, f"{line['whole'] / 3600:.1f} h", part])
    return made


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("python -m benchmarks.card", description=__doc__)
    parser.add_argument("--data_root", type=Path, default=DATA_ROOT, help="where image lists and teachers are")
    parser.add_argument("--work", type=Path, default=Path("runs/card"), help="the folder of its runs and of card.json")
    parser.add_argument("--minutes", type=cli.rate, default=9.0, help="how long this call may work")
    parser.add_argument("--quick", action="store_true", help="tiny runs on letters, to see that everything works")
    cli.add_machine_flags(parser)
    args = parser.parse_args(argv)
    device = cli.prepare_machine(args)
    args.device, args.work, args.data_root = str(device), args.work.resolve(), args.data_root.resolve()
    end = time.monotonic() + 60 * args.minutes
    target = args.work / "card.json"
    about = {"machine": name_of(device), "torch": torch.__version__}
    kept = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {**about, "measured": {}, "spent": {}}
    if {name: kept[name] for name in about} != about:
        raise UserError(f"{target} was measured on {kept['machine']}, torch {kept['torch']}: give another --work")
    measured, spent = kept["measured"], kept["spent"]

    def keep() -> None:
        write_text(target, json.dumps(kept, indent=2) + "\n")

    args.work.mkdir(parents=True, exist_ok=True)
    if not measured:
        measured |= small_work(device, args.quick)
        keep()
    waiting = [job for job in jobs(args.quick) if "seconds" not in measured.get(job.name, {})]
    for number, job in enumerate(waiting):
        left = end - time.monotonic()
        if left < min(FEWEST_SECONDS, 30 * args.minutes):
            print(f"{len(waiting) - number} of its jobs are left: call it again")
            break
        folder = args.work / "".join(letter if letter.isalnum() else "_" for letter in job.name.lower())
        try:
            finished, took = go_on(job, folder, args, left)
        except UserError as reason:
            measured[job.name] = {"failed": str(reason)}
            keep()
            continue
        spent[job.name] = spent.get(job.name, 0.0) + took
        if finished:
            measured[job.name] = figures_of(job, folder, spent[job.name])
        keep()
    else:
        print("all is there")
    print(f"{kept['machine']}, torch {kept['torch']}\n{table(['', 'took', 'of it'], rows(measured))}\nkept in {target}")


if __name__ == "__main__":
    cli.exit_with_message(main)
