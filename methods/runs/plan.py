"""What a command line does, in words: the line that a run begins with, and a dry run, which does nothing else."""

import json
from pathlib import Path
from typing import Any

from methods.runs.arguments import Experiment
from methods.runs.config import OF_ONE_RUN
from methods.runs.run_log import RunLog, read_metrics
from utils.errors import UserError
from utils.tables import duration

NO_MATTER = OF_ONE_RUN | {"seed", "data_root"}  # flags that cost no time


def opening(experiment: Experiment, folder: Path, iteration: int) -> str:
    """The line that a run begins with: where it lies, what is there, and what is to be done."""
    begun = f", from iteration {iteration}" if iteration else ""
    return "; ".join([f"{folder}: {experiment.args.method}", *experiment.plan(), length(experiment) + begun])


def length(experiment: Experiment) -> str:
    """How long a run is."""
    total = experiment.num_iterations
    return f"{total} iterations, validated every {experiment.val_interval}" if total else "nothing is trained"


def dry_run(experiment: Experiment) -> str:
    """The flags, what is there, what is to be made, and how long that took before on this machine, where it did."""
    args, total = experiment.args, experiment.num_iterations
    lines = [f"{name} = {value}" for name, value in sorted(vars(args).items())]
    lines += [*experiment.plan(), *made(experiment.method.summary(), getattr(args, "price_per_1000", None))]
    lines.append(length(experiment))
    if not total:
        return "\n".join(lines)
    found = most_alike(vars(args), args.out)
    if found is None:
        return "\n".join([*lines, f"how long: not known, for no run of {args.method} in {args.out} has been finished yet"])
    name, each, others = found
    same = "the same flags" if not others else f"other values of {', '.join(others)}"
    return "\n".join([*lines, f"how long: about {duration(each * total)}, as {name} took {each:.2f} s an iteration ({same})"])


def made(summary: dict[str, Any], price_per_1000: float | None = None) -> list[str]:
    """What a method says that it will invert and ask, and what asking costs."""
    lines = []

    def cost(images: int) -> str:
        return "" if price_per_1000 is None else f", price {price_per_1000 * images / 1000:,.2f}"

    if one := summary.get("inversion_of_one_teacher"):
        lines.append("to be inverted: {images} images x {steps} steps of a teacher".format(**one))
    if asked := summary.get("asked_of_services"):
        if visit := asked.get("queries_of_a_visit"):
            what = f"{visit:,} images at each visit of a service{cost(visit)}"
            lines.append(f"to be asked: {what}; patience decides how many visits there are")
        else:
            lines.append(f"to be asked: {asked['queries']:,} images in {asked['calls']:,} calls{cost(asked['queries'])}")
    return lines


def most_alike(flags: dict[str, Any], out: Path) -> tuple[str, float, list[str]] | None:
    """The finished run of the method whose flags differ least: its name, seconds an iteration, and the flags that differ."""
    found: list[tuple[int, str, float, list[str]]] = []
    for folder in sorted(out.glob("*/")):
        try:
            saved = RunLog.read_flags(folder)
            seconds = json.loads((folder / "result.json").read_text(encoding="utf-8"))["seconds"]["total"]
            iterations = read_metrics(folder / "metrics.jsonl")[-1]["iteration"]
        except (OSError, ValueError, KeyError, IndexError, TypeError, UserError):
            continue
        if saved.get("method") != flags["method"]:
            continue
        differ = [name for name in sorted(flags) if name not in NO_MATTER and str(saved.get(name)) != str(flags[name])]
        found.append((len(differ), folder.name, seconds / iterations, differ))
    return min(found)[1:] if found else None
