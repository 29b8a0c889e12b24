"""What the scripts of this folder share: finding images, checking them, writing lists, comparing the counts."""

import itertools
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from datasets.image_files import class_folders, decode
from datasets.registry import DATA_ROOT, SPLITS, DatasetSpec, get_spec
from datasets.split import csv_path, list_of
from utils import cli
from utils.errors import UserError
from utils.files import write_text
from utils.names import check_different_classes, check_same_classes
from utils.progress import Progress
from utils.vision import import_torchvision

ClassFiles = dict[str, list[Path]]  # class name -> its image files, both sorted
TYPO = {"meta_train": "mete_train", "meta_val": "mete_val", "meta_test": "mete_test"}  # the papers' archives have it


def lay_out(
    images: np.ndarray, labels: Sequence[int], class_names: Sequence[str], part: str, folder_of: Callable[[str], Path]
) -> None:
    """Write images uint8 (N, H, W, 3) as <folder_of(class)>/<part>_<number>.png."""
    for number, (image, label) in enumerate(zip(Progress(images, desc=f"write {part}", unit="img"), labels, strict=True)):
        target = folder_of(class_names[label])
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target / f"{part}_{number:05d}.png")


def fetch_cifar(
    reader: str, data_root: Path, folder: Path, splits: Sequence[str], place_of: Callable[[str, str], Path]
) -> None:
    """Fetch CIFAR by torchvision's `reader` (or find it on disk) and lay `splits` out in `folder`, whole or not at all.

    `place_of(part, class)` says where below `folder` the images of a class go; part is "train" or "test".
    """
    present = [split for split in splits if (folder / split).exists()]
    if present:
        raise UserError(f"{folder / present[0]} is there already: leave --download away, or move it aside")
    import_torchvision()
    import torchvision.datasets

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for part, train in (("train", True), ("test", False)):
            try:
                found = getattr(torchvision.datasets, reader)(str(data_root), train=train, download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"{reader} could not be fetched ({error}): put its archive (torchvision knows "
                    f"{getattr(torchvision.datasets, reader).filename}) into {data_root} and try again"
                ) from error
            lay_out(
                found.data,
                found.targets,
                found.classes,
                part,
                lambda label, part=part: Path(temporary) / place_of(part, label),  # type: ignore[misc]
            )
        for split in splits:
            shutil.move(Path(temporary) / split, folder / split)


def make_parser(script: str, description: str | None) -> cli.Parser:
    """The parser of `write_file/<script>.py` with the flag that all of them have."""
    parser = cli.Parser(f"write_file/{script}.py", description=description)
    parser.add_argument("--data_root", type=Path, default=DATA_ROOT, help="folder of all image sets")
    return parser


def run_script(
    name: str, collect: Callable[[DatasetSpec, Path], Mapping[str, ClassFiles]], data_root: Path, task: str = "few_shot"
) -> None:
    """Collect the splits of set `name`, check every image, write their lists, and print the counts."""
    spec = get_spec(name, task)
    splits = collect(spec, data_root)
    check_classes(spec, splits)
    for split, classes in splits.items():
        check(classes, f"{spec.folder}/{split}")
    for split, classes in splits.items():
        write_list(spec, split, classes, data_root)
    print_counts(spec, splits)


def split_folders(folder: Path) -> dict[str, ClassFiles]:
    """`folder/{meta_train,meta_val,meta_test}/<class>/<image>`; the papers' spelling `mete_` is accepted."""
    return {
        split: class_folders(folder / TYPO[split] if (folder / TYPO[split]).is_dir() else folder / split) for split in SPLITS
    }


def check_classes(spec: DatasetSpec, splits: Mapping[str, ClassFiles]) -> None:
    """Raise `UserError` unless the splits of a whole set have the same classes, and those of a few-shot set different ones."""
    if spec.task != "classification":
        check_different_classes(splits, spec.folder)
        return
    for first, second in itertools.combinations(splits, 2):
        check_same_classes(list(splits[first]), list(splits[second]), f"{spec.folder}/{first}", f"{spec.folder}/{second}")


def check(classes: ClassFiles, name: str) -> None:
    """Raise `UserError` for a split without classes, naming the first class without images or image that cannot be decoded."""
    if not classes:
        raise UserError(f"{name} has no classes: expected images of some")
    for label, files in classes.items():
        if not files:
            raise UserError(f"class {label!r} of {name} has no images: add some or remove its folder")
    files = [file for members in classes.values() for file in members]
    with ThreadPoolExecutor() as pool:
        checked = pool.map(lambda file: decode(file, 8), files)
        for _ in Progress(checked, total=len(files), desc=f"check {name}", unit="img", leave=False, delay=1):
            pass


def write_list(spec: DatasetSpec, split: str, classes: ClassFiles, data_root: Path) -> None:
    """Write `filename,label` rows sorted by class and file, with paths relative to the data root."""
    write_text(csv_path(spec, split, data_root), list_of(classes, data_root))


def print_counts(spec: DatasetSpec, splits: Mapping[str, ClassFiles]) -> None:
    total = 0
    for split, expected in zip(spec.splits, spec.classes, strict=True):
        images = sum(len(files) for files in splits[split].values())
        total += images
        note = "" if len(splits[split]) == expected else f"   (published: {expected})"
        print(f"{split:10}  {len(splits[split]):4d} classes  {images:6d} images{note}")
    verdict = "as published" if total == spec.images else f"the published set has {spec.images}"
    print(f"{spec.name}: {total} images, {verdict}")


def unpack(archive: Path, target: Path, wanted: str) -> None:
    """Unpack the member folder `wanted` of a tar archive to `target`, refusing members that would land elsewhere.

    Works in a temporary folder beside `target` and renames at the end, so a broken archive leaves nothing behind.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    _unpack_one(tar, member, Path(temporary), archive)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"archive {archive} cannot be unpacked ({error}): download it again") from error
        source = Path(temporary) / wanted
        if not source.is_dir():
            raise UserError(f"archive {archive} holds no folder {wanted}: is it the official one?")
        shutil.move(source, target)


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    """An ordinary file of an archive; what is none (a folder, a link) is passed over, as older Pythons cannot by themselves."""
    content = tar.extractfile(member) if member.isfile() else None
    if content is None:
        return
    inside = PurePosixPath(member.name)
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"archive {archive} cannot be unpacked ({member.name} would land elsewhere): download it again")
    place = folder / inside
    place.parent.mkdir(parents=True, exist_ok=True)
    with content, place.open("wb") as file:
        shutil.copyfileobj(content, file)
