"""A few runs side by side: one table, one picture, and a sentence about each.

python -m methods.runs.compare runs/free runs/chorus --out side_by_side.png
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from methods.evaluation.yardsticks import ONE_TEACHER, is_all_teachers, is_random
from methods.runs.scores import Run, in_terminal, read_run
from utils import cli
from utils.errors import UserError
from utils.plots import Line, check_picture, draw_scores


def verdict(run: Run) -> str:
    """What a run's score means beside one frozen teacher and all of them, where it has these floors."""
    name, said = run.name, []
    for label, by_set in run.result["yardsticks"].items():
        if label.startswith(ONE_TEACHER) or is_all_teachers(label):
            for image_set, numbers in by_set.items():
                where = f" on {image_set}" if len(by_set) > 1 else ""
                if "above" in numbers:
                    said.append(f"{_difference(numbers['above'], numbers['above_half_width'])} {label}{where}")
    if not said:
        return f"{name}: nothing to compare with (no teachers' floors)"
    below = "below one" in " ".join(said)
    return f"{name} is {' and '.join(said)}" + (": its training has not paid, as far as it went" if below else "")


def _difference(above: float, half_width: float) -> str:
    if abs(above) <= half_width:
        return f"level with ({100 * above:+.1f} ± {100 * half_width:.1f})"
    return f"{100 * abs(above):.1f} ± {100 * half_width:.1f} {'above' if above > 0 else 'below'}"


def lines_of(runs: Sequence[Run]) -> tuple[list[Line], list[Line]]:
    """What is drawn: the runs' scores with their intervals, and the floors and ceilings that they share, in %."""
    scores, marks = [], {"chance": Line("chance", 100 / runs[0].result["way"], 0.0)}
    several = len(runs[0].result["accuracy"]) > 1

    def line_of(what: str, image_set: str, numbers: Mapping[str, float]) -> Line:
        said = f"{what} on {image_set}" if several else what
        return Line(said, 100 * numbers["mean"], 100 * numbers["half_width"])

    for run in runs:
        scores += [line_of(run.name, name, numbers) for name, numbers in run.result["accuracy"].items()]
        for label, by_set in run.result["yardsticks"].items():
            if not is_random(label):  # it depends on how a run's learner is adapted
                for name, numbers in by_set.items():
                    line = line_of(label, name, numbers)
                    if marks.setdefault(line.label, line) != line:  # another pool's
                        other = line_of(f"{label} (of {run.name})", name, numbers)
                        marks[other.label] = other
    return sorted(scores, key=lambda line: line.value), sorted(marks.values(), key=lambda line: line.value)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("python -m methods.runs.compare", description="A few runs side by side.")
    parser.add_argument("runs", type=Path, nargs="+", help="finished run directories of one setting")
    parser.add_argument("--out", type=Path, default=Path("side_by_side.png"), help="the picture")
    args = parser.parse_args(argv)
    check_picture(args.out)
    runs = [read_run(folder) for folder in args.runs]
    for run in runs:
        if not run.result.get("evaluated") or "way" not in run.result:
            raise UserError(f"{run.folder} is no finished run with a score in few-shot learning")
        if run.setting != runs[0].setting:
            raise UserError(
                f"{run.folder} is about {run.setting}; {runs[0].folder} about {runs[0].setting}: they do not compare"
            )
        if run.result.get("exams") != runs[0].result.get("exams"):
            raise UserError(
                f"{run.folder} and {runs[0].folder} were examined by other episodes, or one does not say by which: "
                "score one as the other was (--evaluate)"
            )
    print(in_terminal(runs))
    print("\n".join(map(verdict, runs)))
    shown = {f"{run.name}'s images": run.pictures[-1] for run in runs if run.pictures}
    draw_scores(*lines_of(runs), runs[0].setting, args.out, shown)
    print(f"the picture: {args.out}")


if __name__ == "__main__":
    cli.exit_with_message(main)
