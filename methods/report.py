"""What a run ends with: the selected learner's score, floors and ceiling beside it, the judge, the table."""

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from datasets.registry import get_spec
from datasets.split import load_split
from methods.evaluation.few_shot import Exam, examine
from methods.evaluation.floors import ensemble_score, exam_key, pixel_floor, teacher_distances
from methods.evaluation.recognition import beside_real, recognised, train_judge
from methods.few_shot import FewShotMethod
from methods.metalearners.learner import Learner
from utils import checkpoint, seed, tables
from utils.errors import UserError
from utils.metrics import Score
from utils.plots import draw_curve
from utils.run_log import RunLog


def report_result(method: FewShotMethod, log: RunLog, seconds: float, name: str = "result") -> None:
    """Score the selected learner on meta_test once, set it beside floors and ceiling, print the table, write the result."""
    args = method.args
    best = log.folder / "best.pt"
    kept = checkpoint.load(best, method.device) if best.is_file() else {}
    if kept:
        method.take_back(kept)
    begin = time.perf_counter()
    scores = method.evaluate("meta_test") if method.exam_domains else {}
    each = (time.perf_counter() - begin) / max(1, args.episode_test * len(scores))
    yardsticks = {} if args.no_floors or not method.exam_domains else floors(method, args.out / ".floors") | ceilings(method)
    times = method.clock.seconds | {"total": seconds}
    content = {
        "method": args.method,
        "paper": method.PAPER,
        "dataset": args.dataset,
        "testdataset": args.testdataset,
        "evaluated": bool(scores),
        "way": args.way_test,
        "shot": args.shot_test,
        "query": args.query_test,
        "backbone": args.backbone,
        "metalearner": args.metalearner,
        "teachers": len(method.pool) if method.pool else 0,
        "teacher_accuracies": _teacher_accuracies(method),
        "head": _head_note(method),
        "batch_statistics": _statistics_note(method),
        "examined": method.examined_how(),
        "seconds_of_an_episode": each,
        "selected_on": args.select_on,
        "selected_at": kept.get("iteration", 0),
        "image_size": method.image_size,
        "seconds": times,
        "inversion_of_one_teacher": method.effort(),
        "asked_of_services": method.asked(),
        "accuracy": {name: score.numbers() for name, score in scores.items()},
        "yardsticks": {
            label: {name: score.numbers() | _beside(scores[name], score) for name, score in by_set.items()}
            for label, by_set in yardsticks.items()
        },
        "episodes": {name: list(score.values) for name, score in scores.items()},
    }
    draw_curve(log.folder / "metrics.jsonl", log.folder / "images" / "curve.png")
    if args.judge:
        content["recognised"] = judge(method, log)
    log.result(content, name if name == "result" else f"{name}-{args.way_test}w{args.shot_test}s")
    log.say("\n" + result_table(args, content))


def judge(method: FewShotMethod, log: RunLog, teachers: int = 3) -> float:
    """Share of fresh pseudo-images that a network trained on real images names right among the teacher's classes.

    The teachers are drawn by the run's seed; images/recovered.png shows them with real images to the right.
    """
    draws = seed.generator(method.args.seed, "judge", "teachers")
    teacher_ids = torch.randperm(len(method.teachers), generator=draws)[:teachers].tolist()
    chosen = [method.teachers.rows[teacher_id] for teacher_id in teacher_ids]
    nameless = next((row for row in chosen if not row.class_names), None)
    if nameless is not None:
        raise UserError(f"--judge needs the names of the teachers' classes; {nameless.path} has only numbers (--class_order)")
    batches = method.recover(teacher_ids)
    hits, rows = [], []
    splits = {
        row.dataset: load_split(get_spec(row.dataset), "meta_train", method.args.data_root, method.image_size) for row in chosen
    }
    judges = {name: train_judge(split, get_spec(name), method.device) for name, split in splits.items()}
    for row, batch in zip(chosen, batches, strict=True):
        name = row.dataset
        split = splits[name]
        labels = [method.teachers.class_names[class_id].split("/", 1)[1] for class_id in batch.class_ids]
        classes = [split.class_names.index(label) for label in labels]
        hits.append(recognised(judges[name], batch, classes, get_spec(name), method.image_size))
        rows.append(beside_real(batch, split, classes, 6, draws))
    share = float(torch.cat(hits).float().mean())
    log.picture("recovered", torch.cat(rows), 12, method.num_iterations)
    log.say(
        f"a network trained on real images recognises {100 * share:.1f} % of {len(torch.cat(hits))} recovered images "
        f"among the teacher's classes (images/recovered_*.png: recovered left, real right)"
    )
    return share


def _beside(own: Score, other: Score) -> dict[str, float]:
    """How far the method lies above a yardstick, episode by episode, where both met the same ones."""
    if len(own.values) != len(other.values):
        return {}
    difference = own.minus(other)
    return {"above": difference.mean, "above_half_width": difference.half_width}


def _teacher_accuracies(method: FewShotMethod) -> list[float | None]:
    """Each teacher's accuracy on its held-out images, where its list says it."""
    rows = method.pool.rows if method.pool else []
    return [row.accuracy if math.isfinite(row.accuracy) else None for row in rows]


def _statistics_note(method: FewShotMethod) -> str:
    if method.learner.spec.norm == "fixed":
        return "none: fixed numbers"
    return "support" if method.args.inductive else "query (transductive)"


def _head_note(method: FewShotMethod) -> str:
    rebuilt = method.metalearner.ADAPTS and method.args.way_test != method.learner.spec.way
    return "rebuilt from the support's class means" if rebuilt else "as trained"


def floors(method: FewShotMethod, folder: Path) -> dict[str, dict[str, Score]]:
    """Every floor, by image set; computed once for a pool, split and set of episodes."""
    args = method.args
    lines: dict[str, dict[str, Score]] = {}
    for exam in method.exams["meta_test"]:
        learner = [
            asdict(method.learner.spec),
            args.metalearner,
            args.inner_lr,
            args.test_inner_steps,
            args.inductive,
            args.seed,
        ]
        pool = method.pool
        key = [exam_key(exam), learner, pool.fingerprint() if pool else None, method.looks_inside]
        found = checkpoint.cached(folder, key, lambda exam=exam: _compute_floors(method, exam))  # type: ignore[misc]
        for label, values in found.items():
            lines.setdefault(label, {})[exam.spec.name] = Score(values)
    return lines


def _compute_floors(method: FewShotMethod, exam: Exam) -> dict[str, list[float]]:
    lines = {"raw pixels, nearest class mean": pixel_floor(exam, method.device)}
    with torch.random.fork_rng(devices=[method.device] if method.device.type == "cuda" else []):
        torch.manual_seed(method.args.seed)
        untrained = Learner(method.learner.spec, method.device)
    lines["random learner, adapted"] = examine(untrained, method.metalearner, exam, method.args.test_inner_steps)
    if method.pool:
        distances = teacher_distances(method.pool, exam, "features" if method.looks_inside else "answers")
        seen = "" if method.looks_inside else ", answers alone"
        lines[f"one frozen teacher (mean){seen}"] = ensemble_score(distances, 1)
        lines[f"all {len(method.pool)} frozen teachers{seen}"] = ensemble_score(distances, len(method.pool))
    return {label: list(score.values) for label, score in lines.items()}


def ceilings(method: FewShotMethod) -> dict[str, dict[str, Score]]:
    """The newest finished run of `real` in the output folder that is like this one."""
    args = method.args
    if args.method == "real":
        return {}
    alike = {name: getattr(args, name) for name in ("dataset", "testdataset", "backbone", "metalearner")}
    shape = {"way": args.way_test, "shot": args.shot_test, "query": args.query_test, "image_size": method.image_size}
    wanted = {"method": "real", **alike, **shape}
    for path in sorted(args.out.glob("*/result.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        content = json.loads(path.read_text(encoding="utf-8"))
        if all(content.get(key) == value for key, value in wanted.items()) and content.get("episodes"):
            return {"real data (ceiling)": {name: Score(values) for name, values in content["episodes"].items()}}
    return {}


def result_table(args: argparse.Namespace, content: dict[str, Any]) -> str:
    """The table a run ends with: chance, floors, the method, the ceiling, and the times.

    Behind a yardstick stands how far the method is above it, with the interval of the paired difference.
    """
    if not content["evaluated"]:
        return f"{args.method}: not evaluated (no image set given); the learner is in best.pt"
    sets = list(content["accuracy"])
    chance = {"mean": 1 / args.way_test}
    rows = [["chance", *[_cell(chance) for _ in sets]]]
    marks = [] if args.select_on != "meta_test" else ["selected on test"]
    marks += ["head rebuilt from class means"] if content["head"] != "as trained" else []
    marks += [content["examined"]] if content["examined"] else []
    own = args.method + (f" ({', '.join(marks)})" if marks else "")
    ceiling = {label: line for label, line in content["yardsticks"].items() if "ceiling" in label}
    below = {label: line for label, line in content["yardsticks"].items() if label not in ceiling}
    for label, line in (below | {own: content["accuracy"]} | ceiling).items():
        rows.append([label, *[_cell(line.get(name, {})) for name in sets]])
    title = f"{args.way_test}-way {args.shot_test}-shot, {args.episode_test} episodes of meta_test, accuracy in %"
    notes = [f"{name} {tables.duration(value)}" for name, value in content["seconds"].items()]
    notes.append(f"{content['seconds_of_an_episode']:.3f} s an episode of meta_test")
    if content["inversion_of_one_teacher"]:
        notes.append("one teacher: {images} images x {steps} steps".format(**content["inversion_of_one_teacher"]))
    if content["asked_of_services"]:
        notes.append(
            "{queries:,} queries in {calls:,} calls, {queries_per_image:,.0f} a recovered image".format(
                **content["asked_of_services"]
            )
        )
    header = [title, *[f"{name}  ({args.method} above it)" if content["yardsticks"] else name for name in sets]]
    return "\n".join([tables.table(header, rows), ", ".join(notes)]).rstrip()


def _cell(numbers: dict[str, float]) -> str:
    if not numbers:
        return ""
    value = f"{100 * numbers['mean']:.2f}"
    value += f" ± {100 * numbers['half_width']:.2f}" if "half_width" in numbers else " " * 7
    above = f"({100 * numbers['above']:+.2f} ± {100 * numbers['above_half_width']:.2f})" if "above" in numbers else ""
    return f"{value}  {above:>16}"
