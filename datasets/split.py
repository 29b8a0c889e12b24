"""From a CSV list of image files to one uint8 tensor, decoded once and cached beside the list."""

import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from datasets.registry import DatasetSpec
from utils import checkpoint
from utils.errors import UserError
from utils.files import path_below, read_csv
from utils.images import channels_last

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


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


def decode(path: Path, size: int, channels: int = 3) -> np.ndarray:
    """Read an image file of any size as uint8 (channels, size, size). Raises `UserError` naming a file it cannot read."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB" if channels == 3 else "L")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)
    except FileNotFoundError as error:
        raise UserError(f"image {path} is listed but does not exist: write the list again with write_file/") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways of saying that a file is damaged
        raise UserError(f"image {path} cannot be read ({error}): replace or remove it and write the list again") from error


def images_below(folder: Path) -> list[Path]:
    """The image files below a folder, sorted. Raises `UserError` where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{folder} holds no images: expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def read_images(paths: Sequence[Path], size: int) -> torch.Tensor:
    """Image files of any size as uint8 (M, 3, size, size). Raises `UserError` naming a file that cannot be read."""
    return torch.stack([torch.from_numpy(decode(path, size).copy()) for path in paths])


def csv_path(spec: DatasetSpec, split: str, data_root: Path) -> Path:
    return data_root / spec.folder / "split" / f"{split}.csv"


def read_list(spec: DatasetSpec, split: str, data_root: Path) -> pd.DataFrame:
    """The split's list with columns `filename` (below the data root) and `label` (class name), sorted by both."""
    path = csv_path(spec, split, data_root)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: put the images in {data_root / spec.folder} and run python write_file/{spec.script}"
        )
    table = read_csv(path)
    if list(table.columns) != ["filename", "label"]:
        raise UserError(
            f"{path} has the columns {', '.join(table.columns)}; expected filename,label (run write_file/{spec.script})"
        )
    if table.empty:
        raise UserError(f"{path} lists no image: run write_file/{spec.script} again")
    return table.sort_values(["label", "filename"], ignore_index=True)


def load_split(spec: DatasetSpec, split: str, data_root: Path, image_size: int | None = None) -> ImageSplit:
    """Load meta_train, meta_val or meta_test of a set as one tensor.

    The decoded tensor is cached beside the list; the cache is made anew when the list or any file's size or time
    changes. `image_size` overrides the set's own. Raises `UserError` for a missing list, a wrong column, a path that
    leaves the data root, or an image that is missing or damaged.
    """
    size = image_size or spec.image_size
    table = read_list(spec, split, data_root)
    source = str(csv_path(spec, split, data_root))
    paths = [path_below(data_root, name, source) for name in table.filename]
    class_names, labels = np.unique(table.label, return_inverse=True)
    images = channels_last(_decode_cached(paths, size, spec.channels, csv_path(spec, split, data_root)))
    return ImageSplit(images, torch.from_numpy(labels.astype(np.int64)), [str(name) for name in class_names])


def _decode_cached(paths: list[Path], size: int, channels: int, csv: Path) -> torch.Tensor:
    cache = csv.with_name(f".{csv.stem}.{size}px.pt")
    fingerprint = _fingerprint(paths)
    if cache.is_file():
        try:
            content = checkpoint.load(cache)
            if content["fingerprint"] == fingerprint:
                return content["images"]
        except (UserError, KeyError, TypeError):
            pass  # a damaged cache is only a cache
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda path: decode(path, size, channels), paths)
        progress = tqdm(decoded, total=len(paths), desc=f"decode {csv.stem}", unit="img", leave=False, delay=1)
        images = torch.from_numpy(np.stack(list(progress)))  # (N, C, S, S)
    with contextlib.suppress(OSError):  # a read-only data folder works, only slower
        checkpoint.save({"fingerprint": fingerprint, "images": images}, cache)
    return images


def _fingerprint(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            raise UserError(f"image {path} is listed but does not exist: write the list again with write_file/") from error
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
