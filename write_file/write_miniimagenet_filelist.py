"""Write the lists of mini-ImageNet in the split of Ravi & Larochelle (ICLR 2017): 64/16/20 classes of 600 images.

Expects DFL2Ldata/Miniimagenet/{meta_train,meta_val,meta_test}/<wnid>/*.jpg, or the widespread form: one folder
DFL2Ldata/Miniimagenet/images/ beside train.csv, val.csv and test.csv.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from datasets.registry import DatasetSpec
from utils import cli
from utils.errors import UserError
from utils.files import path_below, read_csv
from utils.names import tidy_class
from write_file.filelist import ClassFiles, make_parser, run_script, split_folders

LISTS = {"meta_train": "train.csv", "meta_val": "val.csv", "meta_test": "test.csv"}


def listed_images(folder: Path, name: str) -> ClassFiles:
    """The classes of one of Ravi & Larochelle's lists (`filename,label`), as files of `folder/images`."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path} is missing: {folder}/images needs train.csv, val.csv and test.csv beside it")
    table = read_csv(path)
    if not {"filename", "label"} <= set(table.columns):
        raise UserError(f"{path} has the columns {', '.join(table.columns)}; expected filename,label")
    table["label"] = [tidy_class(label, str(path)) for label in table.label]
    return {
        str(label): sorted(path_below(folder / "images", file, str(path)) for file in group.filename)
        for label, group in table.groupby("label")
    }


def collect(spec: DatasetSpec, data_root: Path) -> dict[str, ClassFiles]:
    folder = data_root / spec.folder
    if (folder / "images").is_dir():
        return {split: listed_images(folder, name) for split, name in LISTS.items()}
    return split_folders(folder)


def main(argv: list[str] | None = None) -> None:
    args = make_parser("write_miniimagenet_filelist", __doc__).parse_args(argv)
    run_script("miniimagenet", collect, args.data_root)


if __name__ == "__main__":
    cli.exit_with_message(main)
