"""Write the lists of CUB-200-2011: of the sorted classes, even ones train, i % 4 == 1 validate, i % 4 == 3 test.

Expects DFL2Ldata/CUB_200_2011/images/<class>/*.jpg, or the official archive CUB_200_2011.tgz in DFL2Ldata/ or in
DFL2Ldata/CUB_200_2011/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from datasets.image_files import class_folders
from datasets.registry import DatasetSpec
from utils import cli
from write_file.filelist import ClassFiles, make_parser, run_script, unpack

ARCHIVE = "CUB_200_2011.tgz"
REMAINDERS = {"meta_train": (0, 2), "meta_val": (1,), "meta_test": (3,)}  # of the class index modulo 4


def collect(spec: DatasetSpec, data_root: Path) -> dict[str, ClassFiles]:
    images = data_root / spec.folder / "images"
    archives = [path for path in (data_root / ARCHIVE, data_root / spec.folder / ARCHIVE) if path.is_file()]
    if archives and not images.is_dir():
        images.parent.mkdir(exist_ok=True)
        unpack(archives[0], images, "CUB_200_2011/images")
    classes = sorted(class_folders(images).items())
    return {
        split: {label: files for index, (label, files) in enumerate(classes) if index % 4 in remainders}
        for split, remainders in REMAINDERS.items()
    }


def main(argv: list[str] | None = None) -> None:
    args = make_parser("write_CUB_filelist", __doc__).parse_args(argv)
    run_script("cub", collect, args.data_root)


if __name__ == "__main__":
    cli.exit_with_message(main)
