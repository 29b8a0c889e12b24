"""What does it do to a learner how unlike its teachers are? Pairs of teachers, from the same classes to none in common.

The empirical study of Task Groupings Regularization (Wei et al., ICML 2024) in small: for each number of shared classes,
and for each pair of architectures, train pairs of teachers, meta-learn from each pair alone, and draw the accuracy.

    python examples/heterogeneity.py --dataset cifar100 --repeats 3 -- --epochs 20 --augment

Flags behind `--` go to main.py. TGR also says how unlike its probe finds the two teachers: `-- --probe imagenet` measures
all pairs by one network from outside; the default probe is other teachers of the pool, and a pair has none. Writes
heterogeneity.csv and heterogeneity.png into --out; finished teachers and runs are kept, so that it can be started again.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.registry import DATA_ROOT, DatasetSpec, get_spec
from datasets.split import ImageSplit, load_split
from examples.runs import behind_dashes, check_study, result_of
from methods.teachers.manifest import TeacherRow, write_manifest
from methods.teachers.pretraining import Recipe, train_pool
from utils import cli, seed
from utils.errors import UserError
from utils.files import write_text
from utils.plots import new_figure, save_figure
from utils.tables import table


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The study's own flags, and those behind `--`."""
    own, passed = behind_dashes(argv)
    parser = cli.Parser("examples/heterogeneity.py", description=__doc__)
    cli.add_machine_flags(parser)
    parser.add_argument("--method", default="tgr", help="how to meta-learn from a pair")
    parser.add_argument("--dataset", default="cifar100", help="image set")
    parser.add_argument("--data_root", type=Path, default=DATA_ROOT, help="folder of image sets")
    parser.add_argument("--image_size", type=cli.count, help="images' height and width (default: the set's own)")
    parser.add_argument("--way", type=cli.count, default=5, help="classes of a teacher and of an episode")
    parser.add_argument("--overlaps", type=cli.whole(0), nargs="*", help="numbers of shared classes (default: 0 to way)")
    parser.add_argument("--architectures", nargs="*", default=["conv4", "resnet10"], help="whose pairs are compared")
    parser.add_argument("--repeats", type=cli.count, default=3, help="pairs of each kind")
    parser.add_argument("--pretrain_epochs", type=cli.count, help="epochs of a teacher (default: the set's)")
    parser.add_argument("--out", type=Path, default=Path("runs/heterogeneity"), help="where everything goes")
    return parser.parse_args(own), passed


def pair_of_classes(split: ImageSplit, way: int, shared: int, repeat: int) -> tuple[list[int], list[int]]:
    """Two sets of `way` class ids with `shared` in common; the first is the same for every `shared`."""
    if not 0 <= shared <= way or 2 * way - shared > len(split.class_names):
        raise UserError(f"two teachers of {way} classes cannot share {shared} of the {len(split.class_names)} there are")
    order = torch.randperm(len(split.class_names), generator=seed.generator(0, "pair", repeat)).tolist()
    return order[:way], order[way - shared : 2 * way - shared]


def accuracy_of_pair(args: argparse.Namespace, passed: list[str], name: str, rows: Sequence[TeacherRow]) -> tuple[float, ...]:
    """Meta-learn from one pair of teachers; meta_test accuracy, its half-width, and the pair's dissimilarity or nan."""
    write_manifest(rows, args.out / f"{name}.csv")
    flags = {
        "method": args.method, "dataset": args.dataset, "data_root": args.data_root, "way_train": args.way,
        "way_test": args.way, "teachers": args.out / f"{name}.csv", "device": args.device, "threads": args.threads,
        "seed": args.seed,
    }  # fmt: skip
    size = ["--image_size", str(args.image_size)] if args.image_size else []
    typed = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    result = result_of(args.out, name, [*typed, *size, *passed])
    numbers, unlike = result["accuracy"][args.dataset], result.get("dissimilarity")
    return numbers["mean"], numbers["half_width"], math.nan if unlike is None else unlike


def study(args: argparse.Namespace, passed: list[str]) -> pd.DataFrame:
    """One line for each pair: kind of comparison, shared classes, architectures, repeat, accuracy, dissimilarity."""
    device = cli.prepare_machine(args)
    check_study(args.out, {"dataset": args.dataset, "pretrain_epochs": args.pretrain_epochs, "image_size": args.image_size})
    spec: DatasetSpec = get_spec(args.dataset)
    split = load_split(spec, "meta_train", args.data_root, args.image_size or spec.image_size).to(device)
    overlaps = range(args.way + 1) if args.overlaps is None else args.overlaps
    cases = [("overlap", shared, ("conv4", "conv4")) for shared in overlaps]
    cases += [("architecture", 0, pair) for pair in combinations_with_replacement(args.architectures, 2)]
    lines = []
    for repeat in range(args.repeats):
        for kind, shared, architectures in cases:
            classes = pair_of_classes(split, args.way, shared, repeat)
            rows = []
            for arch, ids in zip(architectures, classes, strict=True):
                folder = args.out / "teachers" / f"{arch}-{'-'.join(map(str, ids))}"
                rows += train_pool(folder, spec, arch, split, [ids], Recipe(args.pretrain_epochs, milestones=(30, 50)))
            name = f"{'+'.join(architectures)}-shared{shared}-repeat{repeat}"
            numbers = accuracy_of_pair(args, passed, name, rows)
            lines.append((kind, shared, "+".join(architectures), repeat, *numbers))
    columns = ["compared", "shared", "architectures", "repeat", "accuracy", "half_width", "dissimilarity"]
    return pd.DataFrame(lines, columns=columns)


def draw(lines: pd.DataFrame, title: str, target: Path) -> None:
    """Accuracy of every pair and the mean: left against shared classes, right against architectures."""
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, kind, column in ((left, "overlap", "shared"), (right, "architecture", "architectures")):
        some = lines[lines.compared == kind]
        axes.errorbar(some[column], 100 * some.accuracy, 100 * some.half_width, fmt="o", alpha=0.4, capsize=2)
        mean = some.groupby(column, sort=False).accuracy.mean()
        axes.plot(mean.index, 100 * mean, marker="_", markersize=20, linestyle="-" if kind == "overlap" else "none")
        axes.grid(alpha=0.3)
    left.set(xlabel="classes that two conv4 teachers share", ylabel="accuracy on meta_test in %")
    right.set(xlabel="architectures of two teachers without shared classes")
    figure.suptitle(title)
    save_figure(figure, target)


def _cells(some: pd.DataFrame) -> list[str]:
    """Of pairs of one kind: mean accuracy with the spread over pairs, mean dissimilarity, and how many there are."""
    accuracy, unlike = 100 * some.accuracy, some.dissimilarity.mean()
    spread = f" (s {accuracy.std():.2f})" if len(some) > 1 else ""
    return [f"{accuracy.mean():.2f}{spread}", "" if math.isnan(unlike) else f"{unlike:.3f}", str(len(some))]


def main(argv: Sequence[str] | None = None) -> None:
    args, passed = parse_args(sys.argv[1:] if argv is None else argv)
    lines = study(args, passed)
    write_text(args.out / "heterogeneity.csv", lines.to_csv(index=False, lineterminator="\n"))
    draw(lines, f"{args.method} from pairs of teachers, {args.dataset}", args.out / "heterogeneity.png")
    rows = [
        [compared, f"{pair}, {shared} shared", *_cells(some)]
        for (compared, shared, pair), some in lines.groupby(["compared", "shared", "architectures"], sort=False)
    ]
    print(table(["compared", "teachers", "accuracy", "dissimilarity", "pairs"], rows))
    print(f"everything is in {args.out}")


if __name__ == "__main__":
    cli.exit_with_message(main)
