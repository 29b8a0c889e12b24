"""A pool with teachers that lie: `python examples/attacked_pool.py FOLDER --teachers GOOD.csv --other OTHER.csv --oodP .4`.

Beside the good teachers FOLDER/teachers.csv lists some of another image set under random classes of the good ones' (--oodP),
and networks that were never trained (--fakeP), as the scenarios of TEAPOT have them; its column `truth` says which is which,
and nobody reads it.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.teachers.manifest import TeacherRow, read_manifest, write_manifest
from methods.teachers.pool import TeacherPool
from models import create_model
from utils import checkpoint, cli, seed
from utils.errors import UserError
from utils.files import write_text


def sizes(good: int, other: float, untrained: float) -> tuple[int, int]:
    """How many of another set and how many untrained ones stand beside `good` teachers for those shares of the whole pool."""
    whole = math.ceil(good / (1 - other - untrained))
    liars = math.ceil(other * whole)
    return liars, whole - good - liars


def attacked(
    good: list[TeacherRow], other: list[TeacherRow], counts: tuple[int, int], folder: Path, number: int
) -> tuple[list[TeacherRow], list[str]]:
    """The rows of the pool, and the truth about each; their files are written into `folder`."""
    draws = seed.generator(number, "attacked pool")
    known = sorted({name for row in good for name in row.known_as})
    pools = TeacherPool(good, torch.device("cpu")), TeacherPool(other, torch.device("cpu"))
    rows, truth = [], []
    for place, row in enumerate(good):
        rows.append(_written(folder / f"teacher_{place:03d}.pth", row, pools[0][place].network.state_dict()))
        truth.append("good")
    for place in range(len(good), len(good) + sum(counts)):
        lies = place < len(good) + counts[0]
        which = int(torch.randint(len(other if lies else good), (), generator=draws))
        model = (other if lies else good)[which]
        names = tuple(known[i] for i in torch.randperm(len(known), generator=draws)[: len(model.class_ids)])
        if lies:
            state = pools[1][which].network.state_dict()
        else:
            with seed.kept(int(torch.randint(2**31, (), generator=draws))):
                state = create_model(model.arch, len(names), model.image_size).state_dict()
        claimed = replace(model, class_ids=tuple(range(len(names))), class_names=names, dataset=good[0].dataset)
        rows.append(_written(folder / f"teacher_{place:03d}.pth", claimed, state))
        truth.append("of another set" if lies else "never trained")
    return rows, truth


def _written(path: Path, row: TeacherRow, state: dict[str, torch.Tensor]) -> TeacherRow:
    checkpoint.save({"state_dict": state}, path)
    return replace(row, path=path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="must be new")
    parser.add_argument("--teachers", type=Path, required=True, help="the good ones: a teachers.csv")
    parser.add_argument("--other", type=Path, help="teachers of another image set")
    parser.add_argument("--oodP", type=cli.number(0, 0.95), default=0.0, help="share of the pool that is of the other set")
    parser.add_argument("--fakeP", type=cli.number(0, 0.95), default=0.0, help="share that was never trained")
    parser.add_argument("--seed", type=cli.seed, default=0)
    args = parser.parse_args(argv)
    if args.oodP + args.fakeP >= 1:
        raise UserError(f"--oodP {args.oodP} --fakeP {args.fakeP}: nothing would be left for the good ones")
    if not args.oodP + args.fakeP:
        raise UserError("nobody would lie in this pool: give --oodP or --fakeP a share")
    if args.oodP and args.other is None:
        raise UserError(f"--oodP {args.oodP} needs --other, a list of teachers of another image set")
    good, other = read_manifest(args.teachers), read_manifest(args.other) if args.other else []
    args.folder.mkdir(parents=True)
    rows, truth = attacked(good, other, sizes(len(good), args.oodP, args.fakeP), args.folder, args.seed)
    listed = args.folder / "teachers.csv"
    write_manifest(rows, listed)
    table = pd.read_csv(listed, dtype=str, keep_default_na=False).assign(truth=truth)
    write_text(listed, table.to_csv(index=False, lineterminator="\n"))
    print(f"{listed}: {len(rows)} teachers, {', '.join(f'{truth.count(kind)} {kind}' for kind in dict.fromkeys(truth))}")


if __name__ == "__main__":
    cli.exit_with_message(main)
