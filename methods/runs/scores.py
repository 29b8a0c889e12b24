"""Run directories, and their scores side by side: what the page, the comparison and a run over several seeds show."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from methods.evaluation.yardsticks import WORTH, is_ceiling
from methods.runs.config import OF_ONE_RUN
from methods.runs.run_log import RunLog, read_metrics
from utils import cli
from utils.errors import UserError
from utils.tables import table

SHOWN = {"compile", "data_root", "embed_plot", "judge", "no_floors", "save_images"}  # how, where data lie, what is shown beside
NO_RESULTS = OF_ONE_RUN | cli.MACHINE | SHOWN | {"seed"}  # flags on which no score depends, but for the seed
USUAL_QUERIES = 15  # of a class, which a setting need not say
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
        way, shot = result.get("way"), result.get("shot")
        episodes = len(next(iter(result.get("episodes", {}).values()), [])) or self.flags.get("episode_test")
        queries = result.get("query", USUAL_QUERIES)
        asked = "" if queries == USUAL_QUERIES else f" {queries}-query"
        return f"{sets}, {way}-way {shot}-shot{asked}, {episodes} episodes of meta_test, accuracy in %"

    @property
    def again(self) -> list["Run"]:
        """The same run with each of the results that --evaluate made of it; damaged ones are left out with a note."""
        found, note = [], ", scored again" if self.result else ", unfinished"
        for path in sorted(self.folder.glob("evaluate*.json")):
            try:
                found.append(replace(self, result=_read_result(path), note=note))
            except UserError as error:
                print(f"note: {error}", file=sys.stderr)
        return found

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
        result = dict(json.loads(path.read_text(encoding="utf-8")))
        if result.get("evaluated"):
            scores = [result["accuracy"], *result["yardsticks"].values()]
            _ = [score["mean"] + score["half_width"] for by_set in scores for score in by_set.values()], result["method"]
            if not result["accuracy"]:
                raise KeyError("a score")
        return result
    except KeyError as error:
        raise UserError(f"{path} is no result of this program: it lacks {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True)
class Scores:
    """A line of a table: `what` it is about, its `kind` (floor, run, seeds or ceiling), and its numbers by image set.

    numbers: accuracy in %, and its 95 % half-width, or for several seeds their standard deviation. note: what stands out.
    """

    what: str
    kind: str
    numbers: dict[str, tuple[float, float]]
    seeds: int = 1
    note: str = field(default="", compare=False)

    @property
    def mean(self) -> float:
        """Over image sets."""
        return mean(value for value, _ in self.numbers.values())

    def cell(self, name: str) -> str:
        if name not in self.numbers:
            return ""
        value, spread = self.numbers[name]
        return f"{value:.2f} (s {spread:.2f})" if self.kind == "seeds" else f"{value:.2f} ± {spread:.2f}"


def side_by_side(runs: Iterable[Run]) -> list[Scores]:
    """One line for each floor, run, group of runs that differ in the seed alone, and ceiling; what is better comes later.

    A floor that is another one in another run bears that run's name; of runs with one seed the last counts.
    """
    beside: dict[str, dict[str, Scores]] = {"floor": {}, "ceiling": {}}
    own: list[Scores] = []
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        note = ", ".join(dict.fromkeys(f"below {label}" for _, label, _ in below(run.result["yardsticks"])))
        own.append(Scores(run.name, "run", _in_percent(run.result["accuracy"]), note=note))
        groups.setdefault(_without_seed(run), {})[run.flags.get("seed", 0)] = run
        for label, scores in run.result["yardsticks"].items():
            kind = "ceiling" if is_ceiling(label) else "floor"
            line, known = Scores(label, kind, _in_percent(scores)), beside[kind]
            if line.numbers in [one.numbers for one in known.values() if one.what.startswith(label)]:
                continue
            what = label if label not in known else f"{label} (of {run.name})"
            known[what] = replace(line, what=what)
    own += [_over_seeds(list(by_seed.values())) for by_seed in groups.values() if len(by_seed) > 1]
    own.sort(key=lambda line: line.mean)
    if len(own) > 1:
        own[-1] = replace(own[-1], note="; ".join(filter(None, ["best", own[-1].note])))
    shown = [line.numbers for line in own]
    ceilings = [line for line in beside["ceiling"].values() if line.numbers not in shown]  # whose runs are not there themselves
    return [*sorted(beside["floor"].values(), key=lambda line: line.mean), *own, *ceilings]


def _in_percent(scores: dict[str, dict[str, float]]) -> dict[str, tuple[float, float]]:
    return {name: (100 * score["mean"], 100 * score["half_width"]) for name, score in scores.items()}


def below(yardsticks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[tuple[str, str, str]]:
    """What a score lies below, by the paired interval: the floor as `WORTH` names it, its whole label, and the image set."""
    for floor in WORTH:
        for label, by_set in yardsticks.items():
            for name, numbers in by_set.items() if label.startswith(floor) else ():
                if "above" in numbers and numbers["above"] + numbers["above_half_width"] < 0:
                    yield floor, label, name


def _over_seeds(members: Sequence[Run]) -> Scores:
    """Mean and standard deviation over seeds."""
    values = {name: [100 * run.result["accuracy"][name]["mean"] for run in members] for name in members[0].result["accuracy"]}
    what = f"{members[0].result['method']}: mean and spread of {len(members)} seeds"
    return Scores(what, "seeds", {name: (mean(some), stdev(some)) for name, some in values.items()}, len(members))


def _without_seed(run: Run) -> str:
    flags = run.flags | run.result.get("changed", {})
    return json.dumps({name: value for name, value in flags.items() if name not in NO_RESULTS}, sort_keys=True) + run.note


def as_table(lines: Sequence[Scores]) -> pd.DataFrame:
    """The lines for people: a column an image set, and what stands out."""
    names = list(dict.fromkeys(name for line in lines for name in line.numbers))
    found = pd.DataFrame(
        [{"what": line.what, **{name: line.cell(name) for name in names}, "note": line.note} for line in lines]
    )
    return found if any(line.note for line in lines) else found.drop(columns="note")


def as_numbers(lines: Sequence[Scores]) -> pd.DataFrame:
    """The lines for programs: one for each image set, with numbers."""
    return pd.DataFrame(
        [
            {
                "what": line.what, "kind": line.kind, "image_set": name, "accuracy": round(value, 4),
                "half_width": None if line.kind == "seeds" else round(spread, 4),
                "deviation": round(spread, 4) if line.kind == "seeds" else None, "seeds": line.seeds, "note": line.note,
            }
            for line in lines
            for name, (value, spread) in line.numbers.items()
        ]
    )  # fmt: skip


def in_terminal(runs: Sequence[Run]) -> str:
    """The table of finished runs of one setting, for the terminal."""
    found = as_table(side_by_side(runs))
    return table([runs[0].setting, *map(str, found.columns[1:])], found.astype(str).to_numpy().tolist())
