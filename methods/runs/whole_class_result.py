"""What a run of distillation ends with: the student's accuracy beside chance and its teacher, times, a picture of features."""

import argparse
import time
from typing import Any

import torch

from methods.evaluation.yardsticks import ITS_TEACHER
from methods.experiments.whole_class import WholeClassExperiment
from methods.runs.run_log import RunLog, read_metrics
from utils import checkpoint, tables
from utils.images import to_float
from utils.metrics import Score
from utils.plots import draw_curve, draw_embedding

POINTS = 400  # of each kind in the picture of features


def report_student(experiment: WholeClassExperiment, log: RunLog, seconds: float, again: bool = False) -> dict[str, float]:
    """Score the selected student on the test split once, set its teacher beside it, print the table, write the result.

    `again`, for --evaluate, writes evaluate.json instead of result.json. Returns the mean of each score.
    """
    args, method, best = experiment.args, experiment.method, log.folder / "best.pt"
    entered = time.perf_counter()
    kept = checkpoint.load(best, experiment.device) if best.is_file() else {}
    if kept:
        experiment.load_best(kept)
    scores = experiment.evaluate()
    yardsticks: dict[str, dict[str, Score]] = {}
    if scores and method.NEEDS_TEACHER and not args.no_floors:
        yardsticks[ITS_TEACHER] = {experiment.spec.dataset.name: experiment.score(method.teacher)}
    content = {
        "method": args.method,
        "task": method.TASK,
        "paper": method.PAPER,
        "dataset": args.dataset,
        "evaluated": bool(scores),
        "images": len(experiment.test.labels) if experiment.test else 0,
        "classes": len(experiment.spec.class_names),
        "class_names": list(experiment.spec.class_names),
        "teacher": args.teacher if method.NEEDS_TEACHER else None,
        "student": args.student,
        "selected_on": args.select_on,
        "selected_at": kept.get("iteration", 0),
        "image_size": experiment.spec.image_size,
        "seconds": method.clock.seconds | {"total": seconds + time.perf_counter() - entered},
        **({"inversion_of_one_teacher": {}} | method.summary()),
        "accuracy": {label: score.numbers() for label, score in scores.items()},
        "yardsticks": {label: {key: score.numbers() for key, score in line.items()} for label, line in yardsticks.items()},
    }
    log.say("\n" + student_table(args, content))  # before anything is written: a folder may take nothing
    draw_curve(read_metrics(log.folder / "metrics.jsonl"), log.folder.name, log.folder / "images" / "curve.png")
    if args.embed_plot:
        draw_features(experiment, log, args.embed_plot)
    if not again:
        log.set_aside_evaluations()
    log.result(content, "evaluate" if again else "result")
    if not again and (news := experiment.finish()):
        log.say(news)
    return {name: score.mean for name, score in scores.items()}


def student_table(args: argparse.Namespace, content: dict[str, Any]) -> str:
    """Chance, the student and its teacher, and the times."""
    seconds = content["seconds"]
    notes = ", ".join(f"{label} {tables.duration(value)}" for label, value in seconds.items())
    if not content["evaluated"]:
        return f"{args.method}: not evaluated (no test images); the student is in best.pt\n{notes}"
    mark = " (selected on test)" if args.select_on == "test" else ""
    rows = [["chance", f"{100 / content['classes']:.2f}"]]
    lines = {f"{args.method}: {args.student}{mark}": content["accuracy"]} | content["yardsticks"]
    for label, line in lines.items():
        (numbers,) = line.values()
        rows.append([label, f"{100 * numbers['mean']:.2f} ± {100 * numbers['half_width']:.2f}"])
    title = f"{args.dataset}, {content['classes']} classes, {content['images']} test images, top-1 in %"
    return "\n".join([tables.table([title, ""], rows), notes])


@torch.no_grad()
def draw_features(experiment: WholeClassExperiment, log: RunLog, way: str) -> None:
    """images/embedding.png: the teacher's features of synthetic images beside real test images, in two dimensions."""
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.manifold import TSNE

    method, test = experiment.method, experiment.test
    assert test is not None  # the experiment has seen to it
    chosen = torch.randperm(len(test.images))[:POINTS]
    kinds = {"synthetic": method.images_to_compare(POINTS), "real": test.images[chosen]}
    found = [method.teacher.features_and_logits(to_float(images.to(method.device))) for images in kinds.values()]
    features = torch.cat([both[0] for both in found]).cpu().numpy()
    classes = torch.cat([both[1].argmax(1) for both in found]).cpu().tolist()
    if way == "tsne":
        places = TSNE(perplexity=min(30.0, len(features) / 4), random_state=experiment.args.seed).fit_transform(features)
    else:
        places = PCA(2).fit_transform(features)
    labels = [kind for kind, images in kinds.items() for _ in range(len(images))]
    draw_embedding(places.tolist(), labels, classes, log.folder / "images" / "embedding.png")
