"""What a run ends with: the selected learner's score, floors and ceiling beside it, the judge, the table."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from datasets.registry import get_spec
from datasets.split import load_split
from methods.base import FewShotMethod
from methods.evaluation.few_shot import Exam, examine
from methods.evaluation.floors import cached, exam_key, pixel_floor, teacher_floors
from methods.evaluation.recognition import beside_real, recognised, train_judge
from methods.metalearners.learner import Learner
from utils import checkpoint, report, seed
from utils.metrics import Score
from utils.run_log import RunLog


def report_result(method: FewShotMethod, log: RunLog, seconds: float | None, name: str = "result.json") -> None:
    """Score the selected learner on meta_test once, set it beside floors and ceiling, print the table, write the result."""
    args = method.args
    best = log.folder / "best.pt"
    kept = checkpoint.load(best, method.device) if best.is_file() else {}
    if kept:
        method.learner.load_state_dict(kept["learner"])
    scores = {args.method: method.evaluate("meta_test")} if method.domains else {}
    yardsticks = {} if args.no_floors or not method.domains else floors(method, args.out / ".floors") | ceilings(args)
    times = dict(method.clock.seconds) | ({"total": seconds} if seconds is not None else {})
    content = {
        "method": args.method,
        "paper": method.PAPER,
        "dataset": args.dataset,
        "evaluated": bool(scores),
        "way": args.way_test,
        "shot": args.shot_test,
        "query": args.query_test,
        "backbone": args.backbone,
        "metalearner": args.metalearner,
        "teachers": len(method.pool) if method.pool else 0,
        "head": _head_note(method),
        "batch_statistics": "support" if args.inductive else "query (transductive)",
        "selected_on": args.select_on,
        "selected_at": kept.get("iteration", 0),
        "image_size": method.image_size,
        "seconds": times,
        "accuracy": _numbers(scores.get(args.method, {})),
        "yardsticks": {label: _numbers(by_set) for label, by_set in yardsticks.items()},
        "episodes": {label: list(score.values) for label, score in scores.get(args.method, {}).items()},
    }
    if args.judge:
        content["recognised"] = judge(method, log)
    log.result(content, name)
    log.say("\n" + result_table(args, content))


def judge(method: FewShotMethod, log: RunLog, teachers: int = 3) -> float:
    """Share of fresh pseudo-images that a network trained on real images names right among the teacher's classes.

    The teachers are drawn by the run's seed; images/recovered.png shows them with real images to the right.
    """
    draws = seed.generator(method.args.seed, "judge", "teachers")
    chosen = [method.teachers[i] for i in torch.randperm(len(method.teachers), generator=draws)[:teachers].tolist()]
    batches = method.recover(chosen)
    hits, rows = [], []
    splits = {
        teacher.row.dataset: load_split(get_spec(teacher.row.dataset), "meta_train", method.args.data_root, method.image_size)
        for teacher in chosen
    }
    judges = {name: train_judge(split, get_spec(name), method.device) for name, split in splits.items()}
    for teacher, batch in zip(chosen, batches, strict=True):
        name = teacher.row.dataset
        split = splits[name]
        classes = [split.class_names.index(label) for label in teacher.row.class_names]
        hits.append(recognised(judges[name], batch, classes, get_spec(name), method.image_size))
        rows.append(beside_real([batch], split, [classes], 6, draws))
    share = float(torch.cat(hits).float().mean())
    log.picture("recovered", torch.cat(rows), 12, method.num_iterations)
    log.say(
        f"a network trained on real images recognises {100 * share:.1f} % of {len(torch.cat(hits))} recovered images "
        f"among the teacher's classes (images/recovered_*.png: recovered left, real right)"
    )
    return share


def _numbers(scores: dict[str, Score]) -> dict[str, dict[str, float]]:
    return {name: {"mean": score.mean, "half_width": score.half_width} for name, score in scores.items()}


def _head_note(method: FewShotMethod) -> str:
    rebuilt = method.metalearner.ADAPTS and method.args.way_test != method.learner.spec.way
    return "rebuilt from the support's class means" if rebuilt else "as trained"


def floors(method: FewShotMethod, folder: Path) -> dict[str, dict[str, Score]]:
    """Every floor, by image set; computed once for a pool, split and set of episodes."""
    args = method.args
    lines: dict[str, dict[str, Score]] = {}
    for exam in method.exams["meta_test"]:
        learner = [args.backbone, args.metalearner, args.inner_lr, args.test_inner_steps, args.inductive, args.seed]
        pool = method.pool
        key = [exam_key(exam), learner, pool.fingerprint() if pool else None]
        found = cached(folder, key, lambda exam=exam: _compute_floors(method, exam))  # type: ignore[misc]
        for label, score in found.items():
            lines.setdefault(label, {})[exam.spec.name] = score
    return lines


def _compute_floors(method: FewShotMethod, exam: Exam) -> dict[str, Score]:
    lines = {"raw pixels, nearest class mean": pixel_floor(exam, method.device)}
    with torch.random.fork_rng(devices=[method.device] if method.device.type == "cuda" else []):
        torch.manual_seed(method.args.seed)
        untrained = Learner(method.learner.spec, method.device)
    lines["random learner, adapted"] = examine(untrained, method.metalearner, exam, method.args.test_inner_steps)
    if method.pool:
        one, together, _ = teacher_floors(method.pool, exam)
        lines["one frozen teacher (mean)"] = one
        lines[f"all {len(method.pool)} frozen teachers"] = together
    return lines


def ceilings(args: argparse.Namespace) -> dict[str, dict[str, Score]]:
    """The newest finished run of `real` in the output folder that is like this one."""
    if args.method == "real":
        return {}
    wanted = {
        "method": "real", "dataset": args.dataset, "way": args.way_test, "shot": args.shot_test, "query": args.query_test,
        "backbone": args.backbone, "metalearner": args.metalearner,
    }  # fmt: skip
    for path in sorted(args.out.glob("*/result.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        content = json.loads(path.read_text(encoding="utf-8"))
        if all(content.get(key) == value for key, value in wanted.items()) and content.get("episodes"):
            return {"real data (ceiling)": {name: Score(values) for name, values in content["episodes"].items()}}
    return {}


def result_table(args: argparse.Namespace, content: dict[str, Any]) -> str:
    """The table a run ends with: chance, floors, the method, the ceiling, and the times."""
    if not content["evaluated"]:
        return f"{args.method}: not evaluated (no image set given); the learner is in best.pt"
    sets = list(content["accuracy"])
    rows = [["chance", *[f"{100 / args.way_test:.2f}" for _ in sets]]]
    marks = [] if args.select_on != "meta_test" else ["selected on test"]
    marks += ["head rebuilt from class means"] if content["head"] != "as trained" else []
    own = args.method + (f" ({', '.join(marks)})" if marks else "")
    ceiling = {label: line for label, line in content["yardsticks"].items() if "ceiling" in label}
    below = {label: line for label, line in content["yardsticks"].items() if label not in ceiling}
    for label, line in (below | {own: content["accuracy"]} | ceiling).items():
        cells = [
            f"{100 * line[name]['mean']:.2f} ± {100 * line[name]['half_width']:.2f}" if name in line else "" for name in sets
        ]
        rows.append([label, *cells])
    title = f"{args.way_test}-way {args.shot_test}-shot, {args.episode_test} episodes of meta_test, accuracy in %"
    times = ", ".join(f"{name} {report.duration(value)}" for name, value in content["seconds"].items())
    return report.table([title, *sets], rows) + (f"\ntime: {times}" if times else "")
