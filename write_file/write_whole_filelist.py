"""Write the lists of a whole set, for training and distilling classifiers: train.csv and test.csv of the same classes.

    python write_file/write_whole_filelist.py --dataset cifar10 --download

Expects DFL2Ldata/<folder>/{train,test}/<class>/*.png (folders: cifar10, cifar100_whole, imagenet). With --download that
tree is laid out from the ordinary CIFAR files, which torchvision's reader fetches or finds in DFL2Ldata. With
--from_few_shot the images of CIFAR-FS serve, where they are: of each class the first five sixths by file name train and
the rest test, which is not CIFAR-100's official split.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from datasets.image_files import class_folders
from datasets.registry import WHOLE_SPECS, DatasetSpec, get_spec
from utils import cli
from utils.errors import UserError
from write_file.filelist import ClassFiles, fetch_cifar, make_parser, run_script, split_folders

READERS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # torchvision's


def from_few_shot(data_root: Path) -> dict[str, ClassFiles]:
    """CIFAR-FS's classes of all three splits together, each cut by file name."""
    splits = split_folders(data_root / get_spec("cifar100").folder)
    classes = {label: files for split in splits.values() for label, files in split.items()}
    return {
        "train": {label: files[: 5 * len(files) // 6] for label, files in classes.items()},
        "test": {label: files[5 * len(files) // 6 :] for label, files in classes.items()},
    }


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("write_whole_filelist", __doc__)
    parser.add_argument("--dataset", required=True, choices=tuple(WHOLE_SPECS), help="which set")
    parser.add_argument("--download", action="store_true", help="make the image tree from the ordinary CIFAR files")
    parser.add_argument("--from_few_shot", action="store_true", help="cifar100 from CIFAR-FS's images")
    args = parser.parse_args(argv)

    def collect(spec: DatasetSpec, data_root: Path) -> dict[str, ClassFiles]:
        if args.from_few_shot:
            if spec.name != "cifar100":
                raise UserError(f"--from_few_shot makes cifar100 of CIFAR-FS; {spec.name} needs images of its own")
            return from_few_shot(data_root)
        folder = data_root / spec.folder
        if args.download:
            if spec.name not in READERS:
                raise UserError(f"--download knows {', '.join(READERS)}; put {spec.name} into {folder} yourself")
            fetch_cifar(READERS[spec.name], data_root, folder, spec.splits, lambda part, label: Path(part, label))
        return {split: class_folders(folder / split) for split in spec.splits}

    run_script(args.dataset, collect, args.data_root, "classification")


if __name__ == "__main__":
    cli.exit_with_message(main)
