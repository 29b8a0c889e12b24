"""Write the lists of Oxford 102 flowers in the papers' split of 71/15/16 classes.

Expects DFL2Ldata/flower/jpg/image_<number>.jpg and DFL2Ldata/flower/imagelabels.mat, or the official archive
102flowers.tgz in DFL2Ldata/flower/ instead of the folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import scipy.io

from datasets.registry import DatasetSpec
from utils import cli
from utils.errors import UserError, in_words
from write_file.filelist import ClassFiles, make_parser, run_script, unpack

CLASSES = 102
# Class numbers 1..102; every one that is in neither list is in meta_train.
META_VAL = (10, 16, 17, 23, 26, 47, 53, 56, 57, 62, 82, 83, 86, 97, 102)
META_TEST = (5, 9, 15, 19, 35, 40, 41, 42, 45, 46, 65, 85, 89, 94, 96, 98)


def read_labels(path: Path) -> list[int]:
    """The class number of every image, in the order of the image numbers."""
    if not path.is_file():
        raise UserError(f"{path} is missing: download it from the set's page beside the images")
    try:
        labels = [(int(label), label) for label in scipy.io.loadmat(path)["labels"].ravel().tolist()]
    except Exception as error:  # a damaged file makes the reader raise whatever comes
        raise UserError(f"{path} cannot be read as imagelabels.mat ({in_words(error)}): download it again") from error
    if strange := [label for number, label in labels if number != label or not 1 <= number <= CLASSES]:
        raise UserError(f"{path} has the label {strange[0]!r}; expected numbers from 1 to {CLASSES}: download it again")
    return [number for number, _ in labels]


def collect(spec: DatasetSpec, data_root: Path) -> dict[str, ClassFiles]:
    folder = data_root / spec.folder
    archive = folder / "102flowers.tgz"
    if archive.is_file() and not (folder / "jpg").is_dir():
        unpack(archive, folder / "jpg", "jpg")
    if not (folder / "jpg").is_dir():
        raise UserError(f"folder {folder / 'jpg'} is missing: unpack the images there, or put 102flowers.tgz into {folder}")
    splits: dict[str, ClassFiles] = {"meta_train": {}, "meta_val": {}, "meta_test": {}}
    labels, images = read_labels(folder / "imagelabels.mat"), len(list((folder / "jpg").glob("image_*.jpg")))
    if images > len(labels):
        raise UserError(f"{folder} has {images} images, and imagelabels.mat labels {len(labels)}: download both again")
    for number, label in enumerate(labels, start=1):
        split = "meta_val" if label in META_VAL else "meta_test" if label in META_TEST else "meta_train"
        splits[split].setdefault(f"{label:03d}", []).append(folder / "jpg" / f"image_{number:05d}.jpg")
    return splits


def main(argv: list[str] | None = None) -> None:
    args = make_parser("write_flower_filelist", __doc__).parse_args(argv)
    run_script("flower", collect, args.data_root)


if __name__ == "__main__":
    cli.exit_with_message(main)
