"""What do bad teachers cost? A pool of good ones alone, and with bad ones of each kind beside them.

    python examples/bad_teachers.py --teachers GOOD.csv --counts 5 10 20 -- --method chorus --black_box

Each bad teacher claims classes of the good ones' image set and is one of these: a network that was never trained, one trained
on letters, one on classes whose images were dealt out anew (shuffled labels), one on gratings, or a mixture of all four. Flags
behind `--` go to main.py. Writes bad_teachers.csv into --out: the learner's accuracy and that of all teachers frozen, with the
difference from the good ones alone over the same episodes. Finished teachers and runs are kept: it can be started again.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.registry import DATA_ROOT, DatasetSpec, get_spec
from datasets.split import ImageSplit, load_split
from examples.runs import behind_dashes, check_study, result_of
from methods.evaluation.yardsticks import is_all_teachers
from methods.teachers.manifest import TeacherRow, read_manifest, write_manifest
from methods.teachers.pretraining import Recipe, train_pool
from models import create_model
from utils import checkpoint, cli, seed
from utils.errors import UserError
from utils.files import digest, write_text
from utils.metrics import Score
from utils.tables import table

UNTRAINED, LETTERS, SHUFFLED, GRATINGS = KINDS = ("untrained", "letters", "shuffled labels", "gratings")
MIXED = "mixed"  # one of each in turn


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The study's own flags, and those behind `--`."""
    own, passed = behind_dashes(argv)
    parser = cli.Parser("examples/bad_teachers.py", description=__doc__)
    cli.add_machine_flags(parser)
    parser.add_argument("--teachers", type=Path, required=True, help="the good ones: a teachers.csv of one image set")
    parser.add_argument("--data_root", type=Path, default=DATA_ROOT, help="folder of image sets")
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, MIXED), default=[*KINDS, MIXED], help="of bad teachers")
    parser.add_argument("--counts", type=cli.count, nargs="+", default=[5, 10, 20], help="how many stand beside the good ones")
    parser.add_argument("--pretrain_epochs", type=cli.count, default=25, help="epochs of a bad teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/bad_teachers"), help="where everything goes")
    return parser.parse_args(own), passed


def gratings(classes: int, images: int, size: int, draws: torch.Generator) -> ImageSplit:
    """Sine gratings (classes * images, 3, size, size), uint8: a class is an angle and a frequency; phase, colours and
    contrast are drawn for each image."""
    line = torch.arange(size) / size
    angle = torch.arange(classes) * math.pi / classes
    frequency = 2 + torch.arange(classes) % 4  # periods on the image
    label = torch.arange(classes).repeat_interleave(images)
    direction = torch.stack([angle.cos(), angle.sin()], 1) * frequency[:, None]  # (classes, 2)
    along = direction[label, 0, None, None] * line + direction[label, 1, None, None] * line[:, None]  # (N, S, S)
    wave = torch.sin(2 * math.pi * (along + torch.rand(len(label), 1, 1, generator=draws)))
    colour, contrast = torch.rand(2, len(label), 3, 1, 1, generator=draws)
    noise = 0.05 * torch.randn(len(label), 3, size, size, generator=draws)
    pictures = (0.25 + 0.5 * colour + 0.25 * contrast * wave[:, None] + noise).clamp(0, 1)
    return ImageSplit((255 * pictures).round().byte(), label, [f"grating {place:02d}" for place in range(classes)])


def images_of(
    kind: str, spec: DatasetSpec, data_root: Path, size: int, draws: torch.Generator
) -> tuple[DatasetSpec, ImageSplit]:
    """What the bad teachers of a kind are trained on, in place of the good ones' set."""
    if kind == GRATINGS:
        return spec, gratings(16, 300, size, draws)
    spec = get_spec("glyphs") if kind == LETTERS else spec
    split = load_split(spec, "meta_train", data_root, size)
    if kind == SHUFFLED:  # the same labels, beside other images
        split = replace(split, images=split.images[torch.randperm(len(split.images), generator=draws)])
    return spec, split


def bad_teachers(
    args: argparse.Namespace, kind: str, count: int, good: list[TeacherRow], device: torch.device
) -> list[TeacherRow]:
    """`count` teachers of a kind, in the good ones' architectures, each under classes that it does not know."""
    draws = seed.generator(args.seed, "bad teachers", kind)
    spec, folder = get_spec(good[0].dataset), args.out / "teachers" / kind.replace(" ", "_")
    known = sorted({name for row in good for name in row.class_names})
    if kind != UNTRAINED:
        spec, split = images_of(kind, spec, args.data_root, good[0].image_size, draws)
        split = split.to(device)
    rows = []
    for place in range(count):
        like = good[place % len(good)]
        way = len(like.class_ids)
        if kind == UNTRAINED:
            row = replace(like, path=folder / f"teacher_{place:03d}.pth", accuracy=1 / way)
            with seed.kept(args.seed + place):
                network = create_model(like.arch, way, like.image_size)
            if not row.path.is_file():
                checkpoint.save({"state_dict": network.state_dict()}, row.path)
        else:
            ids = torch.randperm(len(split.class_names), generator=draws)[:way].tolist()
            recipe = Recipe(args.pretrain_epochs, milestones=(30, 50))
            row = train_pool(folder / f"{place:03d}", spec, like.arch, split, [ids], recipe, args.seed + place)[0]
        claims = tuple(known[i] for i in torch.randperm(len(known), generator=draws)[:way])
        rows.append(replace(row, class_ids=tuple(range(way)), class_names=claims, dataset=like.dataset))
    return rows


def _copied(path: Path, folder: Path, place: int) -> Path:
    """The same file in `folder`, for a list's teachers lie below it."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy2(path, folder / f"teacher_{place:03d}{path.suffix}"))


def pools(args: argparse.Namespace) -> dict[tuple[str, int], list[TeacherRow]]:
    """The teachers of each pool of the study, by kind and number of the bad ones: the good ones alone come first."""
    good = read_manifest(args.teachers)
    if len({row.dataset for row in good}) > 1 or not all(row.class_names for row in good):
        raise UserError(f"{args.teachers} must list teachers of one image set, with class_names")
    weights = [digest(row.path) for row in good]
    check_study(args.out, {"teachers": weights, "pretrain_epochs": args.pretrain_epochs, "seed": args.seed})
    good = [replace(row, path=_copied(row.path, args.out / "teachers" / "good", place)) for place, row in enumerate(good)]
    most = max(args.counts)
    share = math.ceil(most / len(KINDS)) if MIXED in args.kinds else 0
    needed = {kind: most if kind in args.kinds else share for kind in KINDS}
    device = cli.prepare_machine(args)
    bad = {kind: bad_teachers(args, kind, count, good, device) for kind, count in needed.items() if count}
    bad[MIXED] = [row for rows in zip(*bad.values(), strict=False) for row in rows]
    return {("", 0): good} | {(kind, count): good + bad[kind][:count] for kind in args.kinds for count in args.counts}


def main(argv: Sequence[str] | None = None) -> None:
    args, passed = parse_args(sys.argv[1:] if argv is None else argv)
    place = ["--data_root", args.data_root, "--device", args.device, "--threads", args.threads, "--seed", args.seed]
    lines, alone = [], Score([])
    for (kind, count), rows in pools(args).items():
        name = f"{kind.replace(' ', '_')}-{count}" if count else "good"
        listed = args.out / f"{name}.csv"
        write_manifest(rows, listed)
        flags = ["--dataset", rows[0].dataset, "--teachers", listed, *place]
        result = result_of(args.out, name, [*map(str, flags), *passed])
        score = Score([value for values in result["episodes"].values() for value in values])
        alone = score if not count else alone
        gap = score.minus(alone)
        floors = [by_set for label, by_set in result["yardsticks"].items() if is_all_teachers(label)]
        frozen = floors[0][rows[0].dataset]["mean"] if floors else math.nan
        lines.append((kind, count, score.mean, score.half_width, gap.mean, gap.half_width, frozen))
    columns = ["kind", "bad", "accuracy", "half_width", "difference", "difference_half_width", "frozen"]
    found = pd.DataFrame(lines, columns=columns)
    write_text(args.out / "bad_teachers.csv", found.to_csv(index=False, lineterminator="\n"))
    cells = [
        [f"{bad} {kind}".strip(), *(f"{100 * number:.2f}" for number in numbers)]
        for kind, bad, *numbers in found.itertuples(False)
    ]
    print(table(["bad teachers", "accuracy", "+-", "difference", "+-", "all frozen"], cells))
    print(f"everything is in {args.out}")


if __name__ == "__main__":
    cli.exit_with_message(main)
