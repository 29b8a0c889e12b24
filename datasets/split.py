"""From a CSV list of image files to one uint8 tensor, decoded once and cached beside the list."""

import contextlib
import hashlib
import stat
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from datasets.image_files import RULE, decode
from datasets.registry import DatasetSpec
from utils import checkpoint
from utils.errors import UserError
from utils.files import path_below, read_csv
from utils.images import channels_last
from utils.names import tidy
from utils.progress import Progress

SPARE_COPIES = 0.01  # of a split's images that may stand there twice without a word, as in the published sets


@dataclass(frozen=True)
class ImageSplit:
    """Images of a split, ordered by class and file name.

    images: uint8 (N, C, S, S) in channels-last layout; labels: int64 (N,), indices into `class_names`, which are sorted.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: list[str]

    def to(self, device: torch.device) -> "ImageSplit":
        return ImageSplit(self.images.to(device), self.labels.to(device), self.class_names)


def csv_path(spec: DatasetSpec, split: str, data_root: Path) -> Path:
    """The list of a split: <data_root>/<folder>/split/<split>.csv."""
    return data_root / spec.folder / "split" / f"{split}.csv"


def list_of(classes: Mapping[str, Sequence[Path]], root: Path) -> str:
    """The text of a list: `filename,label` rows sorted by class and file, with paths relative to `root`."""
    rows = [(_written(file.relative_to(root)), label) for label in sorted(classes) for file in sorted(classes[label])]
    return pd.DataFrame(rows, columns=["filename", "label"]).to_csv(index=False, lineterminator="\n")


def _written(path: Path) -> str:
    """A path as a list has it: blanks at the beginning of a cell are no part of it."""
    return f"./{path.as_posix()}" if path.parts[0].startswith(" ") else path.as_posix()


def read_list(spec: DatasetSpec, split: str, data_root: Path) -> pd.DataFrame:
    """The split's list with columns `filename` (below the set's root) and `label` (tidy class name), sorted by both."""
    path = csv_path(spec, split, data_root)
    if not path.is_file() and spec.root:
        raise UserError(
            f"{spec.root} has no classes for {split}: it needs 15 classes to be split, or folders train, val and test of its "
            "own; where none is to be selected on, --select_on last"
        )
    if not path.is_file():
        raise UserError(
            f"{path} is missing: put the images in {data_root / spec.folder} and run python write_file/{spec.script}"
        )
    table = read_csv(path)
    if set(table.columns) != {"filename", "label"}:
        raise UserError(
            f"{path} has the columns {', '.join(table.columns)}; expected filename,label (run write_file/{spec.script})"
        )
    if table.empty:
        raise UserError(f"{path} lists no image: run write_file/{spec.script} again")
    for line, name, label in zip(table.index, table.filename, table.label, strict=True):
        if not name or not label:
            raise UserError(f"{path}, line {line}: {'label' if name else 'filename'} is empty (run write_file/{spec.script})")
    if twice := sorted(set(table.filename[table.filename.duplicated()])):
        raise UserError(f"{path} lists {twice[0]} twice: an image would be example and question (run write_file/{spec.script})")
    table["label"] = table.label.map(tidy)
    return table.sort_values(["label", "filename"], ignore_index=True)


def class_names_of(spec: DatasetSpec, split: str, data_root: Path) -> list[str]:
    """The sorted classes of a split; none where it has no list."""
    return sorted(set(read_list(spec, split, data_root).label)) if csv_path(spec, split, data_root).is_file() else []


def digest_of_files(spec: DatasetSpec, split: str, data_root: Path) -> str:
    """What changes when an image of a split is added, taken away, or becomes a file of another size."""
    table, root = read_list(spec, split, data_root), spec.root or data_root
    sizes = [f"{name} {(root / name).stat().st_size}\n" for name in table.filename]
    return hashlib.sha256("".join(sizes).encode()).hexdigest()


def load_split(spec: DatasetSpec, split: str, data_root: Path, image_size: int | None = None) -> ImageSplit:
    """Load meta_train, meta_val or meta_test of a set as one tensor.

    The decoded tensor is cached beside the list; the cache is made anew when a file is another one than before, or was
    changed. `image_size` overrides the set's own. Raises `UserError` for a missing list, a wrong column, a path that
    leaves the data root, or an image that is missing or damaged.
    """
    size = image_size or spec.image_size
    table = read_list(spec, split, data_root)
    source = str(csv_path(spec, split, data_root))
    root = spec.root or data_root
    paths = [path_below(root, name, source) for name in table.filename]
    class_names, labels = np.unique(table.label, return_inverse=True)
    rule = f"rule {RULE}" if spec.center_crop is None else f"rule {RULE}, center crop {spec.center_crop}"
    fingerprint = _fingerprint(rule, root, paths, source)
    images, anew = _decode_cached(paths, fingerprint, spec, size, csv_path(spec, split, data_root))
    found = ImageSplit(channels_last(images), torch.from_numpy(labels.astype(np.int64)), [str(name) for name in class_names])
    if anew:
        _note_copies(found, paths)
    return found


def _note_copies(split: ImageSplit, paths: Sequence[Path]) -> None:
    """A note on stderr where an image has two classes, or many stand there twice: examples are then among the questions."""
    first: dict[bytes, int] = {}
    contents = (hashlib.sha1(image.contiguous().numpy()).digest() for image in split.images)
    pairs = [(first.setdefault(content, place), place) for place, content in enumerate(contents)]
    copies = [(one, other) for one, other in pairs if one != other]
    between = [(one, other) for one, other in copies if split.labels[one] != split.labels[other]]
    if between or len(copies) > SPARE_COPIES * len(paths):
        one, other = (between or copies)[0]
        said = f"{len(copies)} of {len(paths)} images stand there again, {len(between)} of them under another class"
        print(f"note: {said}; first {paths[one]} and {paths[other]}", file=sys.stderr)


def _decode_cached(paths: list[Path], fingerprint: str, spec: DatasetSpec, size: int, csv: Path) -> tuple[torch.Tensor, bool]:
    """The images, and whether they were decoded now."""
    cache = csv.with_name(f".{csv.stem}.{size}px.pt")
    if cache.is_file():
        with contextlib.suppress(UserError, KeyError, TypeError):  # a damaged cache is only a cache
            content = checkpoint.load(cache)
            images, shape = content["images"], (len(paths), 3, size, size)
            if content["fingerprint"] == fingerprint and images.dtype == torch.uint8 and images.shape == shape:
                return images, False
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda path: decode(path, size, spec.center_crop), paths)
        progress = Progress(decoded, total=len(paths), desc=f"decode {csv.stem}", unit="img", leave=False, delay=1)
        images = torch.from_numpy(np.stack(list(progress)))  # (N, C, S, S)
    with contextlib.suppress(OSError):  # a read-only data folder works, only slower
        checkpoint.save({"fingerprint": fingerprint, "images": images}, cache)
    return images, True


def _fingerprint(rule: str, root: Path, paths: list[Path], source: str) -> str:
    """What changes when the way of reading images or any image does: its place below the root, its file's size and times."""
    digest = hashlib.sha256(f"{rule}\n".encode())
    for path in paths:
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise UserError(
                f"image {path}, listed in {source}, does not exist: write the list again with write_file/"
            ) from error
        except OSError as error:
            raise UserError(f"image {path} of {source} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"image {path} of {source} is no file: write the list again with write_file/")
        known = (path.relative_to(root).as_posix(), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        digest.update(f"{known}\n".encode())
    return digest.hexdigest()
