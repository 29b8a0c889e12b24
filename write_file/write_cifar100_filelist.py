"""Write the lists of CIFAR-FS (Bertinetto et al., ICLR 2019): CIFAR-100 in 64/16/20 classes of 600 images.

Expects DFL2Ldata/cifar100/{meta_train,meta_val,meta_test}/<class>/*.png. With --download that tree is laid out from
the ordinary CIFAR-100 files, which torchvision's reader fetches, or finds in DFL2Ldata/cifar-100-python/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from datasets.registry import SPLITS, DatasetSpec
from utils import cli
from write_file.filelist import ClassFiles, fetch_cifar, make_parser, run_script, split_folders

# The official split; every class that is in neither list is in meta_train.
META_VAL = (
    "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television tractor"
).split()
META_TEST = (
    "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table "
    "telephone wardrobe whale woman worm"
).split()


def split_of(label: str) -> str:
    return "meta_val" if label in META_VAL else "meta_test" if label in META_TEST else "meta_train"


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("write_cifar100_filelist", __doc__)
    parser.add_argument("--download", action="store_true", help="make the image tree from the ordinary CIFAR-100 files")
    args = parser.parse_args(argv)

    def collect(spec: DatasetSpec, data_root: Path) -> dict[str, ClassFiles]:
        if args.download:
            fetch_cifar(
                "CIFAR100", data_root, data_root / spec.folder, SPLITS, lambda part, label: Path(split_of(label), label)
            )
        return split_folders(data_root / spec.folder)

    run_script("cifar100", collect, args.data_root)


if __name__ == "__main__":
    cli.exit_with_message(main)
