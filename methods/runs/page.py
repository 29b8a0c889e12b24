"""All runs on one page: `python -m methods.runs.page runs/* --out report.html`.

A self-contained HTML file with the table of results, floors and ceilings, curves, recovered images, teachers, times, and
the settings in which the runs differ; the table also as report.md and report.csv beside it.
"""

import argparse
import base64
import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from utils import cli
from utils.errors import UserError
from utils.files import write_text
from utils.plots import draw_validations, new_figure
from utils.run_log import RunLog, read_metrics
from utils.tables import duration, table

PLACES = {"out", "run_name", "resume", "evaluate", "seed", "seeds", "threads", "device"}  # flags that change no result
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
PICTURES_SHOWN = 4  # of a kind and run, over its course


@dataclass(frozen=True)
class Run:
    """A run directory: its name, flags, the numbers of every iteration, its result ({} while unfinished), its pictures."""

    folder: Path
    flags: dict[str, Any]
    metrics: list[dict[str, float]]
    result: dict[str, Any]
    note: str = ""

    @property
    def name(self) -> str:
        return self.folder.name + self.note

    @property
    def setting(self) -> str:
        """What a table is about: image sets, way, shot and number of episodes, or the whole set's test images."""
        result = self.result
        sets = result.get("testdataset") or result.get("dataset")
        if result.get("task") == "classification":
            return f"{sets}, {result['classes']} classes, {result['images']} test images, top-1 in %"
        way, shot, episodes = result.get("way"), result.get("shot"), self.flags.get("episode_test")
        return f"{sets}, {way}-way {shot}-shot, {episodes} episodes of meta_test, accuracy in %"

    @property
    def again(self) -> list["Run"]:
        """The same run with each of the results that --evaluate made of it."""
        paths = sorted(self.folder.glob("evaluate-*.json"))
        return [replace(self, result=_read_result(path), note=", scored again") for path in paths]

    @property
    def validations(self) -> list[dict[str, float]]:
        return [line for line in self.metrics if "val" in line]

    @property
    def pictures(self) -> list[Path]:
        """A few of each kind of picture, from first to last."""
        kinds: dict[str, list[Path]] = {}
        for path in sorted((self.folder / "images").glob("*.png")):
            kinds.setdefault(path.stem.rstrip("0123456789"), []).append(path)
        return [path for paths in kinds.values() for path in _spread(paths, PICTURES_SHOWN) if path.stem != "curve"]


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    """Up to `count` items, evenly from first to last."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def read_run(folder: Path) -> Run:
    """Raises `UserError` where `folder` is no run directory, or one of its files is damaged."""
    path = folder / "result.json"
    result = _read_result(path) if path.is_file() else {}
    return Run(folder, RunLog.read_flags(folder), read_metrics(folder / "metrics.jsonl"), result)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def results_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One line for each floor, run, group of runs that differ in the seed alone, and ceiling; a column an image set.

    Accuracy and half-width in %; what is better stands lower. A floor that is another one in another run bears that run's
    name; of runs with one seed the last counts.
    """
    floors: dict[str, dict[str, Any]] = {}
    ceilings: dict[str, dict[str, Any]] = {}
    own: list[dict[str, Any]] = []
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        own.append({"what": run.name, **_cells(run.result["accuracy"])})
        groups.setdefault(_without_seed(run), {})[run.flags.get("seed", 0)] = run
        for label, scores in run.result["yardsticks"].items():
            kind, cells = ceilings if "ceiling" in label else floors, _cells(scores)
            if label in kind and kind[label] != {"what": label, **cells}:
                label = f"{label} (of {run.name})"
            kind.setdefault(label, {"what": label, **cells})
    for by_seed in groups.values():
        if len(by_seed) > 1:
            own.append(_over_seeds(list(by_seed.values())))
    own.sort(key=lambda line: line["mean"])
    lines = [*sorted(floors.values(), key=lambda line: line["mean"]), *own, *ceilings.values()]
    return pd.DataFrame(lines).drop(columns="mean").fillna("")


def scores_of(runs: Sequence[Run]) -> str:
    """The table of finished runs of one setting, for the terminal."""
    found = results_table(runs)
    return table([runs[0].setting, *map(str, found.columns[1:])], found.astype(str).to_numpy().tolist())


def _cells(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    cells: dict[str, Any] = {
        name: f"{100 * score['mean']:.2f} ± {100 * score['half_width']:.2f}" for name, score in scores.items()
    }
    return cells | {"mean": mean(score["mean"] for score in scores.values())}


def _over_seeds(members: Sequence[Run]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    line: dict[str, Any] = {"what": f"{members[0].result['method']}: mean and spread of {len(members)} seeds"}
    for name in members[0].result["accuracy"]:
        values = [100 * member.result["accuracy"][name]["mean"] for member in members]
        line[name] = f"{mean(values):.2f} (s {stdev(values):.2f})"
    return line | {"mean": mean(_cells(member.result["accuracy"])["mean"] for member in members)}


def _without_seed(run: Run) -> str:
    return json.dumps({name: value for name, value in run.flags.items() if name not in PLACES}, sort_keys=True) + run.note


def differing_flags(runs: Sequence[Run]) -> pd.DataFrame:
    """The flags in which the runs differ, a column a run."""
    names = sorted({name for run in runs for name in run.flags} - PLACES | {"seed"})
    values = {name: [str(run.flags.get(name, "")) for run in runs] for name in names}
    return pd.DataFrame(
        [[name, *row] for name, row in values.items() if len(set(row)) > 1], columns=["flag", *[run.name for run in runs]]
    )


def _as_data(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return {"data": _as_data(path.read_bytes()), "label": path.stem, "width": max(image.width, 260)}


def _curves(runs: Sequence[Run], against: str) -> str:
    """Accuracy of the runs at each validation against "seconds" or "iteration", as data of a picture."""
    figure = new_figure(7, 3.8)
    axes = figure.add_subplot()
    for run in runs:
        draw_validations(axes, run.validations, against, run.name)
    axes.set(xlabel="minutes" if against == "seconds" else "iteration", ylabel="accuracy at each validation in %")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _as_data(buffer.getvalue())


def _times(run: Run) -> str:
    return ", ".join(f"{name} {duration(value)}" for name, value in run.result.get("seconds", {}).items())


def _teachers(run: Run) -> str:
    known = [value for value in run.result.get("teacher_accuracies", []) if value is not None and math.isfinite(value)]
    if not known:
        return ""
    return (
        f"{len(known)} teachers, held-out accuracy {100 * mean(known):.1f} % ({100 * min(known):.1f} to {100 * max(known):.1f})"
    )


def build(runs: Sequence[Run]) -> tuple[str, str, str]:
    """The page, and its tables as Markdown and CSV."""
    finished = [one for run in runs for one in (run, *run.again) if one.result.get("evaluated")]
    settings = sorted({run.setting for run in finished})
    tables = [(setting, results_table(run for run in finished if run.setting == setting)) for setting in settings]
    validated = [run for run in runs if run.validations]
    page = TEMPLATES.get_template("page.html").render(
        tables=tables,
        curves=[_curves(validated, against) for against in ("seconds", "iteration")] if validated else [],
        runs=[
            {
                "name": run.name,
                "state": _state(run),
                "times": _times(run),
                "teachers": _teachers(run),
                "pictures": [_picture(path) for path in run.pictures],
            }
            for run in runs
        ],
        differing=differing_flags(runs),
    )
    markdown = "\n\n".join(f"## {title}\n\n{_markdown(table)}" for title, table in tables) + "\n"
    together = [table.assign(setting=title) for title, table in tables]
    return page, markdown, pd.concat(together).to_csv(index=False, lineterminator="\n") if together else ""


def _state(run: Run) -> str:
    if not run.result:
        return f"unfinished, {len(run.metrics)} iterations"
    return "finished" if run.result["evaluated"] else "finished, not evaluated"


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("python -m methods.runs.page", description="All runs on one page.")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories; what is none is passed over")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page; .md and .csv stand beside it")
    args: argparse.Namespace = parser.parse_args(cli.underscored(sys.argv[1:] if argv is None else argv))
    folders = [folder for folder in args.runs if (folder / "args.json").is_file()]
    if not folders:
        raise UserError(f"{args.runs[0]} is no run directory, nor is any other that was named: expected folders of main.py")
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UserError as error:
            print(f"note: {folder} is left out: {error}", file=sys.stderr)
    if not runs:
        raise UserError("every run that was named is damaged: nothing to report")
    page, markdown, csv = build(runs)
    for suffix, content in ((".html", page), (".md", markdown), (".csv", csv)):
        write_text(args.out.with_suffix(suffix), content)
    print(f"{len(runs)} runs: {args.out.with_suffix('.html')}, .md and .csv")


if __name__ == "__main__":
    cli.exit_with_message(main)
