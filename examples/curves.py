"""Accuracy against what it cost: one point a run, one line a method.

    python examples/curves.py runs/chorus-* runs/free-* --against minutes --out runs/cost.png

`--against minutes` counts all work of a run, what an earlier one kept for it included; `--against queries` what black
boxes were asked. Horizontal lines are the floors of the first run.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli
from utils.errors import UserError
from utils.plots import new_figure, save_figure

COSTS: dict[str, Callable[[dict[str, Any]], float]] = {
    "minutes": lambda result: (result["seconds"]["total"] + result["seconds"].get("made by an earlier run", 0.0)) / 60,
    "queries": lambda result: result.get("asked_of_services", {}).get("queries", 0),
}


def read(run: Path) -> dict[str, Any]:
    """A run's result. Raises `UserError` where there is none, or where no image set was scored."""
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{run} holds no finished run: expected a folder with a result.json") from error
    if not result["accuracy"]:
        raise UserError(f"{run} was not evaluated: python main.py --evaluate {run} --testdataset SET")
    return result


def draw(results: Sequence[dict[str, Any]], against: str, target: Path) -> None:
    """Mean accuracy over the image sets, with its interval, against the cost."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for result in results:
        scores = result["accuracy"].values()
        mean, half = (100 * sum(score[key] for score in scores) / len(scores) for key in ("mean", "half_width"))
        label = f"{result['method']}, {result['metalearner']}" + (", black boxes" if COSTS["queries"](result) else "")
        lines.setdefault(label, []).append((COSTS[against](result), mean, half))
    for label, points in lines.items():
        costs, means, halves = zip(*sorted(points), strict=True)
        axes.errorbar(costs, means, halves, marker="o", capsize=3, label=label)
    for label, scores in results[0]["yardsticks"].items():
        level = 100 * sum(score["mean"] for score in scores.values()) / len(scores)
        axes.axhline(level, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(label, (0.01, level), xycoords=("axes fraction", "data"), fontsize=7, color="grey", va="bottom")
    axes.set(xscale="log", xlabel=against, ylabel=f"{results[0]['way']}-way {results[0]['shot']}-shot accuracy in %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:,g}" if value < 1e6 else f"{value / 1e6:g} million")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, target)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("examples/curves.py", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    parser.add_argument("--against", choices=tuple(COSTS), default="minutes", help="the cost")
    parser.add_argument("--out", type=Path, default=Path("runs/cost.png"), help="the picture")
    args = parser.parse_args(argv)
    results = [result for run in args.runs if COSTS[args.against](result := read(run))]
    if not results:
        raise UserError(f"--against {args.against}: these runs cost none; choose from {', '.join(COSTS)}")
    draw(results, args.against, args.out)
    print(args.out)


if __name__ == "__main__":
    cli.exit_with_message(main)
