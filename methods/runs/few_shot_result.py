"""What a run ends with: the selected learner's score, floors and ceiling beside it, the judge, the table."""

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from methods import short_name
from methods.evaluation.floors import Reading, floors
from methods.evaluation.judge import judge, sets_of
from methods.evaluation.yardsticks import CEILINGS, WORTH, is_ceiling
from methods.experiments.few_shot import FewShotExperiment
from methods.runs.arguments import build_parser
from methods.runs.config import OF_ONE_RUN, changed
from methods.runs.run_log import RunLog, read_metrics
from methods.runs.scores import below
from methods.teachers.pool import TeacherPool
from utils import checkpoint, cli, seed, tables
from utils.metrics import Score
from utils.plots import draw_curve

TEACHERS_JUDGED = 3


def report_learner(experiment: FewShotExperiment, log: RunLog, seconds: float, again: bool = False) -> dict[str, float]:
    """Score the selected learner on meta_test once, set it beside floors and ceiling, print the table, write the result.

    `again`, for --evaluate, writes evaluate-<way>w<shot>s[-<set>][-<read-out>].json. Returns the mean of each score.
    """
    args, method = experiment.args, experiment.method
    entered = time.perf_counter()
    best = log.folder / "best.pt"
    kept = checkpoint.load(best, experiment.device) if best.is_file() else {}
    read_anew = bool(kept) and experiment.load_best(kept)
    begin = time.perf_counter()
    scores = experiment.evaluate("meta_test") if experiment.exam_domains else {}
    each = (time.perf_counter() - begin) / max(1, args.episode_test * len(scores))
    about = _about(experiment)
    yardsticks = _yardsticks(experiment, about)
    temperature = _temperature(experiment, log, kept, read_anew, again)
    content = _facts(experiment) | about
    content |= {
        "selected_on": kept.get("selected_by", args.select_on),
        "seconds_of_an_episode": each,
        "selected_at": kept.get("iteration", 0),
        "one_shot_temperature": temperature,
        "calibration": experiment.calibration(temperature or 1.0) if scores and method.TRAINS else {},
        **_scores(scores, yardsticks),
        **({"inversion_of_one_teacher": {}, "asked_of_services": {}, "examined": ""} | method.summary()),
        "seconds": method.clock.seconds | {"total": seconds + time.perf_counter() - entered},
    }
    metrics = read_metrics(log.folder / "metrics.jsonl")
    if again and not (log.folder / "result.json").is_file():
        content["examined"] = ", ".join(filter(None, [content["examined"], "of an unfinished run"]))
    if args.judge:
        content["recognised"] = _judge(experiment, log)
    log.say("\n" + result_table(args, content))  # before anything is written: a folder may take nothing
    if not again and method.TRAINS and hasattr(method, "replay") and not any("replay_updates" in line for line in metrics):
        log.say("note: memory never had images enough for an episode, and the learner was not meta-trained on any")
    draw_curve(metrics, log.folder.name, log.folder / "images" / "curve.png")
    if again:
        where = f"-{content['testdataset']}" if content["testdataset"] else ""
        content["changed"] = _changed(experiment, log)
        read = f"-{'-'.join(args.readout)}" if "readout" in content["changed"] else ""
        log.result(content, f"evaluate-{args.way_test}w{args.shot_test}s{where}{read}")
    else:
        log.set_aside_evaluations()
        log.result(content)
    return {label: score.mean for label, score in scores.items()}


def _scores(scores: Mapping[str, Score], yardsticks: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """Accuracy by image set, that of the yardsticks with the paired difference, and the accuracy in every episode."""
    return {
        "evaluated": bool(scores),
        "accuracy": {name: score.numbers() for name, score in scores.items()},
        "yardsticks": {
            label: {name: score.numbers() | _beside(scores[name], score) for name, score in by_set.items()}
            for label, by_set in yardsticks.items()
        },
        "episodes": {name: list(score.values) for name, score in scores.items()},
    }


def _temperature(
    experiment: FewShotExperiment, log: RunLog, kept: dict[str, Any], read_anew: bool, again: bool
) -> float | None:
    """The temperature of one-shot answers: that of best.pt, or fitted where it has none yet, or one of another read-out.

    The first is kept in best.pt. None for what is not trained.
    """
    if not experiment.method.TRAINS:
        return None
    if not again and ("temperature" not in kept or experiment.args.select_on == "pseudo"):  # whose memory has changed
        found = experiment.one_shot_temperature()
        if kept:
            log.save("best.pt", kept | {"temperature": found})
        return found
    return experiment.one_shot_temperature() if read_anew else kept.get("temperature")


def _changed(experiment: FewShotExperiment, log: RunLog) -> dict[str, Any]:
    """The flags that --evaluate was typed with in place of the run's own."""
    args = experiment.args
    may = cli.changeable(build_parser(args.method), evaluating=True) - OF_ONE_RUN - cli.MACHINE
    return changed(experiment.EARLIER | RunLog.read_flags(log.folder), args, may)


def _facts(experiment: FewShotExperiment) -> dict[str, Any]:
    """What a result says of its run, whatever the scores are."""
    args, method, pool = experiment.args, experiment.method, experiment.teachers
    return {
        "method": args.method,
        "task": method.TASK,
        "paper": method.PAPER,
        "way": args.way_test,
        "shot": args.shot_test,
        "query": args.query_test,
        "teachers": len(pool),
        "teacher_accuracies": [row.accuracy if math.isfinite(row.accuracy) else None for row in pool.rows],
        "head": _head_note(experiment),
        "test_classes_known_to_teachers": experiment.known,
        "image_size": experiment.spec.image_size,
    }


def _about(experiment: FewShotExperiment) -> dict[str, Any]:
    """What was examined, by which exams (a digest of each), and how: what two scores share that may stand side by side."""
    args = experiment.args
    return {
        # a folder of the user's by its name
        **{name: Path(place).name if (place := getattr(args, name)) else None for name in ("dataset", "testdataset")},
        "exams": {exam.spec.name: exam.digest for exam in experiment.exams["meta_test"]},
        "backbone": args.backbone,
        "metalearner": args.metalearner,
        "batch_statistics": _statistics_note(experiment),
        "readout": args.readout,
        "test_inner_steps": args.test_inner_steps,
    }


def _judge(experiment: FewShotExperiment, log: RunLog) -> float:
    """Share of fresh pseudo-images that a network trained on real images names right among the teacher's classes.

    The teachers are drawn by the run's seed; images/recovered.png shows them with real images to the right.
    """
    args, pool = experiment.args, experiment.teachers
    draws = seed.generator(args.seed, "judge", "teachers")
    teacher_ids = torch.randperm(len(pool), generator=draws)[:TEACHERS_JUDGED].tolist()
    batches = experiment.method.recover(teacher_ids)
    sets, size = sets_of(experiment.domains), experiment.spec.image_size
    hits, picture = judge(pool, teacher_ids, batches, sets, args.data_root, size, draws)
    share = float(hits.double().mean())
    log.picture("recovered", picture, experiment.num_iterations)
    log.say(
        f"a network trained on real images recognises {100 * share:.1f} % of {len(hits)} recovered images "
        f"among the teacher's classes (images/recovered_*.png: recovered left, real right)"
    )
    return share


def _beside(own: Score, other: Score) -> dict[str, float]:
    """How far the method lies above a yardstick, episode by episode, where both met the same ones."""
    if len(own.values) != len(other.values):
        return {}
    difference = own.minus(other)
    return {"above": difference.mean, "above_half_width": difference.half_width}


def _statistics_note(experiment: FewShotExperiment) -> str:
    if experiment.method.outcome.spec.norm == "fixed":
        return "none: fixed numbers"
    return "support" if experiment.args.inductive else "query (transductive)"


def _head_note(experiment: FewShotExperiment) -> str:
    method = experiment.method
    rebuilt = method.metalearner.ADAPTS and experiment.args.way_test != method.learner.spec.way
    return "rebuilt from the support's class means" if rebuilt else "as trained"


def _yardsticks(experiment: FewShotExperiment, about: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """Floors and ceiling, by what they are and by image set; `about` is what `_about` says of the run."""
    args, method = experiment.args, experiment.method
    if args.no_floors or not experiment.exam_domains:
        return {}
    pool = experiment.teachers
    if getattr(args, "query_budget", None) and any(row.is_asked for row in pool.rows):
        pool = TeacherPool([], pool.device)  # nobody is asked beyond the budget
    spec, how = method.learner.spec, method.metalearner
    reading = Reading(spec, how, args.test_inner_steps, args.readout, experiment.mirrors)
    found = floors(experiment.exams["meta_test"], reading, pool, method.looks_inside(args), args.seed, args.out)
    return found | ceilings(args, about)


def ceilings(args: argparse.Namespace, about: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """For each ceiling the newest finished run of it in the output folder, with this learner and the very same exams."""
    found: dict[str, dict[str, Score]] = {}
    paths = [] if args.method in CEILINGS else [*args.out.glob("*/result.json"), *args.out.glob("*/evaluate-*.json")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            label, learner = CEILINGS.get(content["method"], ("", ()))
            same = all(content.get(name) == about[name] for name in ("exams", *learner))
            if label and same and (path.parent / "result.json").is_file():
                found.setdefault(label, {name: Score(values) for name, values in content["episodes"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # another run's file, and none of this one's business
    return found


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
    method = short_name(args.method)
    own = method + (f" ({', '.join(marks)})" if marks else "")
    above = {label: line for label, line in content["yardsticks"].items() if is_ceiling(label)}
    others = {label: line for label, line in content["yardsticks"].items() if label not in above}
    for label, line in (others | {own: content["accuracy"]} | above).items():
        rows.append([label, *[_cell(line.get(name, {})) for name in sets]])
    title = f"{args.way_test}-way {args.shot_test}-shot, {args.episode_test} episodes of meta_test, accuracy in %"
    notes = [f"{name} {tables.duration(value)}" for name, value in content["seconds"].items()]
    notes.append(f"{content['seconds_of_an_episode']:.3f} s an episode of meta_test")
    if content["inversion_of_one_teacher"]:
        notes.append("one teacher: {images} images x {steps} steps".format(**content["inversion_of_one_teacher"]))
    if content["asked_of_services"]:
        notes += said_of_services(content["asked_of_services"])
    header = [title, *[f"{name}  ({method} minus this line)" if content["yardsticks"] else name for name in sets]]
    said = [*said_of_calibration(content["calibration"]), *said_of_several_sets(content), *warnings(args, content)]
    return "\n".join([tables.table(header, rows), ", ".join(notes), *said]).rstrip()


def said_of_calibration(calibration: dict[str, dict[str, float]]) -> list[str]:
    """How sure answers are beside how right they are."""
    said = []
    for name, numbers in calibration.items():
        sure = "{:.0f}".format(100 * numbers["confidence"])
        apart = [f"{100 * numbers[when]:.1f}" for when in ("before", "after")]
        said.append(
            f"{name}: mean confidence {sure} %, calibration error {apart[0]} points, {apart[1]} at the temperature of answers"
        )
    return said


def said_of_services(asked: dict[str, float]) -> list[str]:
    """What was asked, and what it cost."""
    notes = ["{queries:,} queries in {calls:,} calls".format(**asked)]
    if "queries_per_image" in asked:
        notes.append(f"{asked['queries_per_image']:,.0f} a recovered image")
    if "sent" in asked:
        notes.append(f"{asked['sent']:,} images left for servers")
    if "price" in asked:
        notes.append(f"price {asked['price']:,.2f}")
    return notes


def warnings(args: argparse.Namespace, content: dict[str, Any]) -> list[str]:
    """What a score says about itself where it is not above a floor that needs no training (paired interval below 0)."""
    found = below(content["yardsticks"])
    return [f"note: {short_name(args.method)} is below {floor} on {name}: {WORTH[floor]}" for floor, _, name in found]


def said_of_several_sets(content: dict[str, Any]) -> list[str]:
    """That they are seen alike, which in the papers they are not."""
    if len(content["accuracy"]) < 2:
        return []
    form = f"at {content['image_size']} pixels and in one normalisation"
    return [f"note: all sets are seen {form}; the papers' mix is tested with CIFAR-FS at 32 pixels and each set in its own"]


def _cell(numbers: dict[str, float]) -> str:
    if not numbers:
        return ""
    value = f"{100 * numbers['mean']:.2f}"
    value += f" ± {100 * numbers['half_width']:.2f}" if "half_width" in numbers else " " * 7
    above = f"({100 * numbers['above']:+.2f} ± {100 * numbers['above_half_width']:.2f})" if "above" in numbers else ""
    return f"{value}  {above:>16}"
