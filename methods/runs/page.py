"""All runs on one page: `python -m utils.report runs/* --out report.html`.

A self-contained HTML file with the results drawn and as tables, floors and ceilings, curves, recovered images, teachers, times,
and the settings in which the runs differ; the tables also as report.md, and as numbers in report.csv beside it.
"""

import base64
import contextlib
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from methods.evaluation.yardsticks import is_random
from methods.runs.arguments import build_parser
from methods.runs.scores import NO_RESULTS, Run, Scores, as_numbers, as_table, read_run, side_by_side
from utils import cli
from utils.code import is_code
from utils.errors import UserError
from utils.files import write_text
from utils.images import shown_in_rows
from utils.plots import draw_validations, new_figure
from utils.tables import duration

TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
TITLE = "Data-free meta-learning: runs"  # by which an earlier page is recognised
AXIS = (8.0, 412.0)  # where the axis of a chart begins and ends, in its own unit
ROW = 36.0  # height of a line of a chart


def chart(lines: Sequence[Scores], name: str, way: int) -> dict[str, Any]:
    """Where everything stands that is drawn of one image set: dots with intervals, and lines for what they stand between."""
    shown = [line for line in lines if name in line.numbers and line.kind in ("run", "seeds")]
    beside = [("chance", 100 / way)]
    beside += [
        (line.what, line.numbers[name][0])
        for line in lines
        if name in line.numbers and (line.kind == "ceiling" or (line.kind == "floor" and not is_random(line.what)))
    ]
    ends = [value for _, value in beside]
    ends += [value + sign * spread for line in shown for value, spread in [line.numbers[name]] for sign in (-1, 1)]
    ends = [min(max(end, 0), 100) for end in ends]  # the interval of a single episode is infinite
    low, high = math.floor(min(ends) / 5) * 5, math.ceil(max(ends) / 5) * 5
    step = 5 if high - low <= 40 else 10

    def place(value: float) -> float:
        return round(AXIS[0] + (AXIS[1] - AXIS[0]) * (min(max(value, low), high) - low) / max(1, high - low), 1)

    dots = []
    for number, line in enumerate(shown):
        value, spread = line.numbers[name]
        dots.append(
            {
                "label": line.what, "said": line.cell(name), "note": line.note, "y": 30 + ROW * number,
                "x": place(value), "x0": place(value - spread), "x1": place(value + spread),
            }
        )  # fmt: skip
    return {
        "name": name,
        "dots": dots,
        "marks": [
            {"letter": chr(97 + number), "label": label, "said": f"{value:.2f}", "x": place(value), "up": number % 2}
            for number, (label, value) in enumerate(sorted(beside, key=lambda pair: pair[1]))
        ],
        "ticks": [{"x": place(value), "said": value} for value in range(low, high + 1, step)],
        "bottom": 30 + ROW * len(shown),
    }


def differing_flags(runs: Sequence[Run]) -> pd.DataFrame:
    """The flags in which the runs differ, what they mean, and a column a run."""
    names = sorted({name for run in runs for name in run.flags} - NO_RESULTS | {"seed"})
    meanings: dict[str, str] = {}
    for method in {str(run.flags.get("method")) for run in runs}:
        if is_code(method):  # of somebody's, which is not run for a page
            continue
        with contextlib.suppress(UserError):  # of another version of the program
            meanings |= {action.dest: action.help or "" for action in build_parser(method)._actions}
    meanings["method"] = "the paper's algorithm, or a yardstick"
    values = {name: [_in_words(run.flags.get(name)) for run in runs] for name in names}
    return pd.DataFrame(
        [[name, meanings.get(name, ""), *row] for name, row in values.items() if len(set(row)) > 1],
        columns=["setting", "what it is", *[run.name for run in runs]],
    )


def _in_words(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _as_data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        rows, width = shown_in_rows(image), max(image.width, 260)
    return {"data": _as_data(path.read_bytes()), "label": path.stem, "width": width, "rows": rows}


def _curves(runs: Sequence[Run], name: str) -> str:
    """Accuracy of the runs on one image set at each validation over the minutes, as data of a picture."""
    figure = new_figure(7, 3.8)
    axes = figure.add_subplot()
    for run in runs:
        draw_validations(axes, run.validations, "seconds", run.name, name)
    grey = "#808080"  # to be read on white and on black
    axes.set_xlabel("minutes", color=grey)
    axes.set_ylabel(f"{name}, accuracy in %", color=grey)
    axes.legend(fontsize=7, labelcolor=grey, framealpha=0)
    axes.grid(alpha=0.3)
    axes.tick_params(colors=grey)
    axes.patch.set_alpha(0)
    for edge in axes.spines.values():
        edge.set_color(grey)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, transparent=True)
    return _as_data(buffer.getvalue())


def curves(runs: Sequence[Run]) -> list[dict[str, str]]:
    """A picture for each image set that some run looked at more than once."""
    by_set: dict[str, list[Run]] = {}
    for run in runs:
        looks = run.validations
        for name in dict.fromkeys(name for look in looks for name in look if "/" in name or name == "pseudo"):
            if sum(name in look for look in looks) > 1:
                by_set.setdefault(name, []).append(run)
    return [
        {"data": _curves(some, name), "said": f"{name}: accuracy at each validation of {', '.join(run.name for run in some)}"}
        for name, some in by_set.items()
    ]


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
    """The page, its tables as Markdown, and their numbers as CSV."""
    finished = [one for run in runs for one in (run, *run.again) if one.result.get("evaluated")]
    settings, tables, numbers = [], [], []
    for title in sorted({run.setting for run in finished}):
        members = [run for run in finished if run.setting == title]
        lines, way = side_by_side(members), members[0].result.get("way") or members[0].result["classes"]
        sets = dict.fromkeys(name for run in members for name in run.result["accuracy"])
        settings.append({"title": title, "table": as_table(lines), "charts": [chart(lines, name, way) for name in sets]})
        tables.append(f"## {title}\n\n{_markdown(as_table(lines))}")
        numbers.append(as_numbers(lines).assign(setting=title))
    page = TEMPLATES.get_template("page.html").render(
        title=TITLE,
        settings=settings,
        curves=curves(runs),
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
    return page, "\n\n".join(tables) + "\n", pd.concat(numbers).to_csv(index=False, lineterminator="\n") if numbers else ""


def _state(run: Run) -> str:
    if not run.result:
        return f"unfinished, {len(run.metrics)} iterations"
    return "finished" if run.result["evaluated"] else "finished, not evaluated"


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def check_replaceable(out: Path) -> None:
    """Raise `UserError` where a page, or what goes beside it, would take the place of a file that no page came with."""
    page, *others = (out.with_suffix(suffix) for suffix in (".html", ".md", ".csv"))
    known = page.is_file() and TITLE in page.read_text(encoding="utf-8", errors="replace")[:1000]
    if taken := next((path for path in (page, *others) if path.exists() and not known), None):
        raise UserError(f"{taken} is there already and belongs to no page of runs: name another --out")


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("python -m utils.report", description="All runs on one page.")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories; what is none is passed over")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page; .md and .csv stand beside it")
    args = parser.parse_args(argv)
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
    check_replaceable(args.out)
    page, markdown, csv = build(runs)
    for suffix, content in ((".html", page), (".md", markdown), (".csv", csv)):
        write_text(args.out.with_suffix(suffix), content)
    print(f"{len(runs)} runs: {args.out.with_suffix('.html')}, .md and .csv")
