"""The figures behind the tables of docs/ and README: taken from finished runs, kept in one file, and written out.

    python -m methods.runs.figures runs/*    # adds these runs to docs/figures.json, and writes docs/results.md and README anew

What `--evaluate` has scored of a few-shot run is taken, too. A run replaces an earlier one of the same command and
seed. Nothing in the page is typed by hand.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from methods.evaluation.yardsticks import ANSWERS_ALONE, CEILINGS, ITS_TEACHER, is_random
from methods.runs.run_log import RunLog
from methods.runs.scores import NO_RESULTS, Run, read_run
from utils import cli
from utils.errors import UserError
from utils.files import write_text
from utils.tables import duration

PLACES = {f"--{name}" for name in NO_RESULTS - {"config"}}  # of a command, what is not its result's
RUNS_OF_THEIR_OWN = {name for name, _ in CEILINGS.values()}  # of yardsticks, what has a row by its own right
SEVERAL = {"--allow_code", "--teachers"}  # may be typed several times
ABOUT = """Made from finished runs by `python -m methods.runs.figures`; the figures are in [figures.json](figures.json).

The learner is picked on meta_val and meets meta_test once. Of one seed the interval is that of the mean over episodes (95 %);
of several the mean over seeds stands with their standard deviation (s). *statistics*: whether batch normalisation sees the
queries of an episode (batch, as in the papers' evaluation) or not (fixed). *settings*: whose defaults (`paper`, or `quick` for
a short run). *time* is that of the clock, on machines that may have had other work; *commit* the version that ran.

Of a student (whole sets) the last epoch, if the row says nothing else, meets the test images once.
*images x steps*: of a call of generation."""
HEADERS = {
    "few_shot": ["", "accuracy", "seeds", "settings", "statistics", "time", "images asked", "commit"],
    "classification": ["", "accuracy", "seeds", "settings", "images x steps", "generation", "time", "commit"],
}
SAID = ("--answers", "--digits", "--api_dtype")  # flags of what an API says
NAMED = (*SAID, "--probe", "--g_steps", "--num_images", "--query_budget")  # that a row names beside the method
AGAIN = "; python main.py --evaluate RUN --way_test {way} --num_sup_test {shot}"
FRONT_SETTING = "cifar100, 5-way {shot}-shot, 600 episodes of meta_test, accuracy in %"
FRONT = (  # the lines of results.md that README shows
    "*raw pixels, nearest class mean*", "*random learner, read the same way (ncm)*",
    "*one frozen teacher (mean)*", "*all 20 frozen teachers*",
    "**bidf_mkd, maml, black boxes**", "**teapot, protonet**", "**purer_plus, protonet**", "**free, protonet**",
    "**tgr, protonet**", "**chorus, ncm, black boxes, read whitened mirror**", "**teacher_ncm, ncm, read whitened mirror**",
    "**real, protonet**", "**real, maml**", "**real_classifier, ncm**",
)  # fmt: skip
FRONT_EDGES = ("<!-- made by methods.runs.figures -->\n", "<!-- until here -->\n")
Figure = Mapping[str, Any]  # one run, as figures.json has it


def figures_of(run: Run) -> list[dict[str, Any]]:
    """What is kept of a finished run, and of each time that it was scored on episodes again."""
    again = [one for one in run.again if "shot" in one.result]
    return [figure_of(run), *[figure_of(one, _again(one.result)) for one in again]]


def _again(result: Mapping[str, Any]) -> str:
    """How `result` was typed, behind the command of its run."""
    words = [AGAIN.format(**result)]
    for name, value in result.get("changed", {}).items():
        if name not in ("way_test", "shot_test"):
            values = value if isinstance(value, list) else [value]
            words.append(" ".join([f"--{name}", *(str(one) for one in values if one is not True)]))
    return " ".join(words)


def figure_of(run: Run, then: str = "") -> dict[str, Any]:
    """What is kept of a result; `then`: what was typed after the run. Raises `UserError` for a run that has none."""
    result, record = run.result, RunLog.read_record(run.folder)
    if not result.get("evaluated"):
        raise UserError(f"{run.folder} is no finished run with a score")
    task = result.get("task", "few_shot")  # older runs of few-shot learning do not say
    return {
        "task": task,
        "setting": run.setting,
        "command": command_of(record["argv"], result["method"]) + then,
        "seed": run.flags["seed"],
        "settings": run.flags["settings"],
        **OF_TASK[task](result),
        "seconds": result["seconds"]["total"],
        "commit": record["environment"]["commit"],
        "machine": f"{record['environment']['processor']}, torch {record['environment']['torch']}",
        "accuracy": result["accuracy"],
        "yardsticks": {
            label: {name: {key: score[key] for key in ("mean", "half_width")} for name, score in scores.items()}
            for label, scores in result["yardsticks"].items()
            if label not in RUNS_OF_THEIR_OWN
        },
    }


def _of_few_shot(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "statistics": "batch" if result["batch_statistics"].startswith("query") else "fixed",
        "metalearner": result["metalearner"],
        "backbone": result["backbone"],
        "readout": result.get("readout", ["plain"]),
        "queries": result["asked_of_services"].get("queries", 0),
    }


def _of_classification(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": result["method"],
        "selected_on": result["selected_on"],
        "class_names": result.get("class_names", []),
        "networks": [name for name in (result["teacher"], result["student"]) if name],
        "call": result["inversion_of_one_teacher"],
        "generation": result["seconds"].get("generation", 0.0),
    }


OF_TASK = {"few_shot": _of_few_shot, "classification": _of_classification}


def command_of(argv: Sequence[str], method: str) -> str:
    """The command line of a run of `method` without what is not its result's: places, seed, threads, and what was typed anew.

    A method that a --config named is named, too.
    """
    parts: list[list[str]] = []  # a flag and its values
    words = [part for word in cli.underscored(argv) for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for word in words if {"--method", "--full"} & set(words) else ["--method", method, *words]:
        if word.startswith("--") or not parts:
            parts.append([])
        parts[-1].append(word)
    names = [part[0] for part in parts]
    kept = [
        word
        for place, part in enumerate(parts)
        if names[place] in SEVERAL or names[place] not in {*PLACES, *names[place + 1 :]}
        for word in part
    ]
    program = "pretrain.py" if "--full" in kept else "main.py"
    return " ".join(["python", program, *kept])


def merged(before: Iterable[Figure], new: Iterable[Figure]) -> list[Figure]:
    """Old and new figures in the order of their commands; of one command and seed the newest."""
    by_key = {(figure["setting"], figure["command"], figure["seed"]): figure for figure in [*before, *new]}
    return [by_key[key] for key in sorted(by_key)]


def page_of(figures: Sequence[Figure]) -> str:
    """docs/results.md."""
    parts = ["# Results", "", ABOUT]
    for setting in sorted({figure["setting"] for figure in figures}):
        members = [figure for figure in figures if figure["setting"] == setting]
        parts += ["", f"## {setting}", "", *_table(members), ""]
        parts += [f"Classes: {', '.join(names)}.", ""] if (names := members[0].get("class_names")) else []
        parts.append("```bash")
        parts += [*[command.replace("; ", "\n") for command in sorted({figure["command"] for figure in members})], "```", ""]
        parts.append(f"Machines: {'; '.join(sorted({figure['machine'] for figure in members}))}, one thread.")
    return "\n".join(parts) + "\n"


def front_of(figures: Sequence[Figure]) -> str:
    """README's table: the lines of `FRONT` at one and five shots, what is better lower."""
    columns = []
    for shot in (1, 5):
        lines = _lines([one for one in figures if one["setting"] == FRONT_SETTING.format(shot=shot)])
        by_label: dict[str, tuple[float, str]] = {}
        for value, (label, accuracy, seeds, *_) in lines:  # the best of one label comes last
            several = f", {len(seeds.split(','))} seeds" if "," in seeds else ""
            by_label[label] = (value, accuracy + several)
        columns.append(by_label)
    rows = [["", "1-shot", "5-shot"], ["---"] * 3, ["chance", "20.00", "20.00"]]
    for label in sorted(set(FRONT) & set(columns[0]), key=lambda label: columns[0][label][0]):
        rows.append([label, *[column.get(label, (0.0, ""))[1] for column in columns]])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def with_front(readme: str, table: str) -> str:
    """README with its table made anew. Raises `UserError` where it has no place for one."""
    begin, end = (readme.find(edge) for edge in FRONT_EDGES)
    if not 0 <= begin < end:
        raise UserError(f"README.md has no place for the table: expected a line {FRONT_EDGES[0].strip()} and its end")
    return readme[: begin + len(FRONT_EDGES[0])] + table + readme[end:]


def _table(figures: Sequence[Figure]) -> list[str]:
    header = HEADERS[figures[0]["task"]]
    cells = [header, ["---"] * len(header), *[row for _, row in _lines(figures)]]
    return [f"| {' | '.join(row)} |" for row in cells]


def _lines(figures: Sequence[Figure]) -> list[tuple[float, list[str]]]:
    """The lines of a table with what they are sorted by."""
    rows: list[tuple[float, list[str]]] = []
    floors: dict[str, Figure] = {}
    for figure in figures:
        for label, scores in figure["yardsticks"].items():
            own = f" ({', '.join([figure['metalearner'], *_network(figure)])})" if is_random(label) else ""
            own += "".join(f", {word}" for word in _named(figure, SAID)) if label.endswith(ANSWERS_ALONE) else ""
            own += f": {figure['networks'][0]}" if label.startswith(ITS_TEACHER) else ""
            floors.setdefault(label + own, scores)
    for label, scores in floors.items():
        rows.append((_mean(scores), [f"*{label}*", _interval(scores), "", "", "", "", "", ""]))
    by_command: dict[str, list[Figure]] = {}
    for figure in figures:
        by_command.setdefault(figure["command"], []).append(figure)
    for members in by_command.values():
        rows.append((mean(_mean(member["accuracy"]) for member in members), _row(members)))
    return sorted(rows)


def _row(members: Sequence[Figure]) -> list[str]:
    first = members[0]
    time = duration(mean(member["seconds"] for member in members))
    if first["task"] == "few_shot":
        own = [first["statistics"], time, f"{first['queries']:,}" if first["queries"] else ""]
    else:
        call, made = first["call"], mean(member["generation"] for member in members)
        own = [f"{call['images']} x {call['steps']}" if call else "", duration(made) if made else "", time]
    return [
        f"**{_label(first)}**",
        _interval(first["accuracy"]) if len(members) == 1 else _spread(members),
        ", ".join(str(member["seed"]) for member in members),
        first["settings"],
        *own,
        ", ".join(sorted({member["commit"][:7] for member in members})),
    ]


def _label(figure: Figure) -> str:
    words = figure["command"].split(";")[0].split()
    if figure["task"] == "classification":
        selected = [] if figure["selected_on"] == "last" else [f"selected on {figure['selected_on']}"]
        return ", ".join([f"{figure['method']}: {' to '.join(figure['networks'])}", *_named(figure), *selected])
    plus = "_plus" if "--candidate_size" in words else ""
    black = ", black boxes" if {"--ZO", "--black_box"} & set(words) else ""
    read = " ".join(figure.get("readout", ["plain"]))
    more = [*_network(figure), *([] if read == "plain" else [f"read {read}"]), *_named(figure)]
    others = "".join(f", {word}" for word in more)
    looked = f", {words[words.index('--ncm_on') + 1]}" if "--ncm_on" in words else ""
    return f"{words[words.index('--method') + 1]}{plus}, {figure['metalearner']}{black}{looked}{others}"


def _network(figure: Figure) -> list[str]:
    """The learner's network, where it is not the papers' conv4."""
    backbone = figure.get("backbone", "conv4")
    return [] if backbone == "conv4" else [backbone.replace("conv4_", "conv4, width ")]


def _named(figure: Figure, flags: Sequence[str] = NAMED) -> list[str]:
    """Those of a command's flags that a line of the table names, with their values."""
    words = figure["command"].split(";")[0].split()
    return [f"{flag[2:]} {words[words.index(flag) + 1]}" for flag in flags if flag in words]


def _mean(scores: Mapping[str, Mapping[str, float]]) -> float:
    return mean(score["mean"] for score in scores.values())


def _interval(scores: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{100 * score['mean']:.2f} ± {100 * score['half_width']:.2f}" for score in scores.values())


def _spread(members: Sequence[Figure]) -> str:
    by_set = [[100 * member["accuracy"][name]["mean"] for member in members] for name in members[0]["accuracy"]]
    return ", ".join(f"{mean(values):.2f} (s {stdev(values):.2f})" for values in by_set)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("python -m methods.runs.figures", description="The figures behind the tables of docs/.")
    parser.add_argument("runs", type=Path, nargs="*", help="finished run directories; none: write the page anew")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of figures.json and results.md")
    args = parser.parse_args(argv)
    path = args.docs / "figures.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; take it back from the version before") from error
    folders = [folder for folder in args.runs if (folder / "args.json").is_file()]
    for folder in args.runs:
        if folder not in folders:
            print(f"note: {folder} is no run directory, and is left out", file=sys.stderr)
    figures = merged(before, [one for folder in folders for one in figures_of(read_run(folder))])
    write_text(path, json.dumps(figures, indent=1) + "\n")
    write_text(args.docs / "results.md", page_of(figures))
    readme = args.docs.parent / "README.md"
    if readme.is_file():
        write_text(readme, with_front(readme.read_text(encoding="utf-8"), front_of(figures)))
    print(f"{len(folders)} runs, {len(figures)} in all: {path} and {args.docs / 'results.md'}")


if __name__ == "__main__":
    cli.exit_with_message(main)
