"""Image sets of the user's own: a folder with a folder for each class, in place of a name in the table."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets.image_files import RULE, class_folders, is_hidden, opened, read_images
from datasets.registry import SPECS, SPLITS, DatasetSpec, get_spec, is_mix, mixture
from datasets.split import list_of
from utils import seed
from utils.errors import UserError
from utils.files import write_text
from utils.names import check_different_classes, look_alike_notes, shown

PARTS = {"meta_train": "train|training|trn", "meta_val": "val|valid|validation|dev", "meta_test": "test|testing|tst"}
GIVEN = {  # what people call the parts of a set that is split already
    part: re.compile(rf"(met[ae][_-]?)?({names})([_-]?(set|data|images))?", re.IGNORECASE) for part, names in PARTS.items()
}
SHARES = (0.64, 0.16)  # of the classes, for meta_train and meta_val, as in CIFAR-FS; the others are meta_test
LEAST = 15  # classes, so that each part has some
SIZES = (32, 64, 84)  # pixels that images are brought to: the largest that half of them have
MEASURED = 1000  # images that size, mean and std are taken from
Classes = dict[str, list[Path]]


def get_domains(name: str, data_root: Path) -> list[DatasetSpec]:
    """The sets that `--dataset name` stands for: one of the table, the papers' three for `mix`, or a folder.

    Raises `UserError` listing the names when there is none, and for a folder that is no image set.
    """
    if is_mix(name):
        return mixture()
    return [own_set(Path(name).expanduser().resolve(), data_root) if is_own(name) else get_spec(name)]


def is_own(name: str) -> bool:
    """Whether a name means a folder: it has a slash, or is the name of one and of no set."""
    return os.sep in name or "/" in name or (name not in SPECS and not is_mix(name) and Path(name).is_dir())


@lru_cache(maxsize=16)  # a command asks several times
def own_set(folder: Path, data_root: Path) -> DatasetSpec:
    """The row of a folder; its lists, and what was measured of its images, are kept below `data_root / "own"`.

    `folder/<class>/<image>` is split by class with a fixed seed, or, with fewer than 15 classes, is meta_test as a whole;
    `folder/{train,val,test}/<class>/<image>` (or meta_*) is taken as it is, with parts left out where they are.
    Raises `UserError` where there are no classes, or where two parts share one.
    """
    if not folder.is_dir():
        raise UserError(f"image set {folder} is missing: expected a folder with {folder}/<class>/<image>, or a set's name")
    parts = _given(folder) or _split(class_folders(folder))
    name = f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    kept = data_root / "own" / name
    lists = {part: list_of(classes, folder) for part, classes in parts.items()}
    stamps = [
        (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        for stat in (file.stat() for part in parts.values() for file in _files(part))
    ]
    digest = hashlib.sha256(json.dumps([lists, stamps, RULE], sort_keys=True).encode()).hexdigest()
    about = _read(kept / "set.json")
    if about.get("digest") != digest:
        for part in SPLITS:
            (kept / "split" / f"{part}.csv").unlink(missing_ok=True)
        for part, text in lists.items():
            write_text(kept / "split" / f"{part}.csv", text)
        about = {"digest": digest, **_measured([file for classes in parts.values() for file in _files(classes)])}
        write_text(kept / "set.json", json.dumps(about) + "\n")
    counts = tuple(len(parts.get(part, {})) for part in SPLITS)
    images = sum(len(_files(classes)) for classes in parts.values())
    mean, std = tuple(about["mean"]), tuple(about["std"])
    called = f"own-{folder.name}" if folder.name in SPECS else folder.name  # a set of the table is another one
    return DatasetSpec(called, f"own/{name}", about["size"], mean, std, counts, images, "", root=folder)


def _given(folder: Path) -> dict[str, Classes]:
    """The parts of a set that is split already; {} for one that is not."""
    names = {entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)}
    found = {part: sorted(filter(spelling.fullmatch, names)) for part, spelling in GIVEN.items()}
    parts_there = {name for some in found.values() for name in some}
    if not found["meta_test"] or names != parts_there:
        split = [name for name in sorted(parts_there) if _holds_classes(folder / name)]
        if split:  # and not a class of that name
            spare = f"beside them {shown(sorted(names - parts_there))}" if names - parts_there else "no part called test"
            raise UserError(
                f"{folder} holds parts of a set ({shown(split)}) and {spare}: expected train, val and test with the classes in "
                "them, of which test is needed, and nothing else; or the classes alone"
            )
        return {}
    if several := next((some for some in found.values() if len(some) > 1), None):
        raise UserError(f"{folder} has {shown(several)}, which are one part of a set: put their classes into one folder")
    parts = {part: class_folders(folder / called[0]) for part, called in found.items() if called}
    check_different_classes(parts, str(folder))
    return parts


def check_no_parts(folder: Path) -> None:
    """Raise `UserError` where what should be the folders of classes are the parts of a set."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    parts = [name for name in names if any(spelling.fullmatch(name) for spelling in GIVEN.values())]
    if len(parts) > 1 and all(_holds_classes(folder / name) for name in parts):
        raise UserError(f"{folder} holds parts of a set ({shown(parts)}) and no classes: name one of them, {folder / parts[0]}")


def _holds_classes(folder: Path) -> bool:
    """Whether there are folders in it, and nothing beside them."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    return bool(entries) and all(entry.is_dir() for entry in entries)


def _split(classes: Classes) -> dict[str, Classes]:
    """Classes into three parts, by a fixed seed and their names alone; a note on stderr where two look alike."""
    for note in look_alike_notes(classes):
        print(note, file=sys.stderr)
    if len(classes) < LEAST:
        return {"meta_test": classes}
    names = sorted(classes, key=lambda name: seed.generator(0, "own", name).initial_seed())
    first, second = round(SHARES[0] * len(names)), round((SHARES[0] + SHARES[1]) * len(names))
    parts = {"meta_train": names[:first], "meta_val": names[first:second], "meta_test": names[second:]}
    return {part: {name: classes[name] for name in sorted(members)} for part, members in parts.items()}


def _files(classes: Mapping[str, Sequence[Path]]) -> list[Path]:
    return [file for members in classes.values() for file in members]


def _read(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _measured(files: Sequence[Path]) -> dict[str, object]:
    """Size, mean and standard deviation of a set's images, from an even choice of them."""
    chosen = [files[place] for place in np.linspace(0, len(files) - 1, min(MEASURED, len(files))).astype(int)]
    sides = []
    for file in chosen:
        with opened(file) as picture:
            sides.append(min(picture.size))
    size = max([size for size in SIZES if size <= float(np.median(sides))], default=SIZES[0])
    pixels = read_images(chosen, size).double() / 255  # (M, 3, size, size)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=0.01)
    return {"size": size, "mean": [round(value, 4) for value in mean.tolist()], "std": [round(v, 4) for v in std.tolist()]}
