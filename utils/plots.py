"""Plots of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from utils.errors import UserError
from utils.files import atomic_path, check_ordinary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
MAKER = b"Matplotlib"  # whom files of these name as their maker


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", target: Path) -> None:
    """Write a figure as a picture, whole or not at all."""
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=120)


def check_picture(target: Path) -> None:
    """Raise `UserError` where no figure can be written so, or would take the place of something else."""
    if target.suffix.lower() not in FORMATS:
        raise UserError(f"{target} is no name of a picture: expected one that ends in {', '.join(FORMATS)}")
    check_ordinary(target)
    if target.exists() and target.stat().st_size and MAKER not in target.read_bytes():
        raise UserError(f"{target} is there already and is no plot: name another file")


def draw_matrix(
    matrix: Sequence[Sequence[float]], groups: Sequence[int], labels: Sequence[str], title: str, target: Path
) -> None:
    """Draw a square matrix with a line after each group of rows; `groups` are their sizes, `labels` name the rows."""
    side = max(4.0, 0.16 * len(matrix))
    figure = new_figure(side + 2.5, side + 1)
    axes = figure.add_subplot()
    image = axes.imshow(matrix, cmap="viridis")
    for edge in list(accumulate(groups))[:-1]:
        axes.axhline(edge - 0.5, color="white", linewidth=1.5)
        axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    axes.set(title=title, xticks=[])
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    figure.colorbar(image)
    save_figure(figure, target)


def draw_embedding(places: Sequence[Sequence[float]], kinds: Sequence[str], classes: Sequence[int], target: Path) -> None:
    """Draw points (x, y), a marker for each kind, coloured by class."""
    figure = new_figure(7, 6)
    axes = figure.add_subplot()
    for kind, marker in zip(dict.fromkeys(kinds), "ox^s", strict=False):
        members = [index for index, own in enumerate(kinds) if own == kind]
        x, y = zip(*[places[index] for index in members], strict=True)
        colours = [classes[index] for index in members]
        axes.scatter(x, y, c=colours, cmap="tab20", vmin=0, vmax=max(classes), marker=marker, s=18, linewidths=0.8)
        axes.scatter([], [], c="grey", marker=marker, label=kind)
    axes.set(xticks=[], yticks=[], title="the teacher's features; colour: the class it names")
    axes.legend()
    save_figure(figure, target)


def draw_validations(
    axes: "Axes", validations: Sequence[Mapping[str, float]], against: str, label: str, what: str = "val"
) -> None:
    """A line of validation accuracies in % against "seconds" (shown as minutes) or "iteration".

    what: the number that is drawn. What selects, "val", or is all of it, has a 95 % band.
    """
    validations = [one for one in validations if what in one]
    scale = 1 / 60 if against == "seconds" else 1.0
    places = [one[against] * scale for one in validations]
    axes.plot(places, [100 * one[what] for one in validations], marker=".", label=label)
    if all(one[what] == one["val"] for one in validations):
        below, above = ([100 * (one["val"] + sign * one["val_half_width"]) for one in validations] for sign in (-1, 1))
        axes.fill_between(places, below, above, alpha=0.2)


def draw_curve(lines: Sequence[Mapping[str, float]], title: str, target: Path) -> None:
    """Draw the validation accuracy over the minutes of a run, with its 95 % band; nothing where there was none.

    lines: those of its metrics.jsonl.
    """
    validations = [line for line in lines if "val" in line]
    if not validations:
        return
    figure = new_figure(6, 3.5)
    axes = figure.add_subplot()
    draw_validations(axes, validations, "seconds", "")
    axes.set(xlabel="minutes", ylabel="accuracy in %", title=title)
    axes.grid(alpha=0.3)
    save_figure(figure, target)


@dataclass(frozen=True)
class Line:
    """A number with its interval (value ± half_width), and what it is."""

    label: str
    value: float
    half_width: float


def draw_scores(
    scores: Sequence[Line], marks: Sequence[Line], title: str, target: Path, pictures: Mapping[str, Path] | None = None
) -> None:
    """Draw scores as dots with their intervals on one axis, the best one in colour, and marks as named lines across.

    Above them stand the upper parts of `pictures`, by what they show.
    """
    pictures, height = pictures or {}, 1.6 + 0.4 * len(scores) + 0.22 * len(marks)
    figure = new_figure(8, height + (2.0 if pictures else 0))
    rows = figure.add_gridspec(2, max(1, len(pictures)), height_ratios=(2.0 if pictures else 0.01, height))
    for column, (name, path) in enumerate(pictures.items()):
        with Image.open(path) as image:
            upper = image.crop((0, 0, image.width, min(image.height, image.width * 2 // 5)))
        shown = figure.add_subplot(rows[0, column], title=name, anchor="N")
        shown.imshow(upper, interpolation="nearest")
        shown.axis("off")
    axes = figure.add_subplot(rows[1, :])
    best = max(scores, key=lambda score: score.value)
    for place, score in enumerate(scores):
        colour = "tab:orange" if score is best else "tab:blue"
        axes.errorbar(score.value, place, xerr=score.half_width, fmt="o", color=colour, capsize=3)
        axes.annotate(f"{score.value:.1f}", (score.value, place), xytext=(0, 7), textcoords="offset points", ha="center")
    for place, mark in enumerate(marks):
        axes.axvline(mark.value, color="grey", linestyle="--", linewidth=1)
        words = f" {mark.label} {mark.value:.1f}"
        axes.text(mark.value, len(scores) - 0.2 + 0.55 * (len(marks) - place - 1), words, fontsize=8, color="dimgrey")
    axes.set_yticks(range(len(scores)), [score.label for score in scores])
    axes.set(ylim=(-0.6, len(scores) - 0.2 + 0.55 * len(marks)), xlabel="accuracy in %", title=title)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.35 * (right - left))  # room for the marks' names
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, target)
