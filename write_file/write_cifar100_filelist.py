"""Write the lists of CIFAR-FS (Bertinetto et al., ICLR 2019): CIFAR-100 in 64/16/20 classes of 600 images.

Expects DFL2Ldata/cifar100/{meta_train,meta_val,meta_test}/<class>/*.png. With --download that tree is laid out from
the ordinary CIFAR-100 files, which torchvision's reader fetches, or finds in DFL2Ldata/cifar-100-python/.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.registry import SPLITS, DatasetSpec
from utils.errors import UserError
from utils.vision import import_torchvision
from write_file.filelist import ClassFiles, make_parser, run_script, split_folders

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


def lay_out(images: np.ndarray, labels: Sequence[int], class_names: Sequence[str], part: str, folder: Path) -> None:
    """Write images uint8 (N, H, W, 3) as folder/<split>/<class>/<part>_<number>.png."""
    for number, (image, label) in enumerate(zip(tqdm(images, desc=f"write {part}", unit="img"), labels, strict=True)):
        target = folder / split_of(class_names[label]) / class_names[label]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target / f"{part}_{number:05d}.png")


def download(data_root: Path, folder: Path) -> None:
    """Fetch CIFAR-100 (or find it on disk) and lay it out in `folder`, whole or not at all."""
    present = [split for split in SPLITS if (folder / split).exists()]
    if present:
        raise UserError(f"{folder / present[0]} is there already: leave --download away, or move it aside")
    import_torchvision()
    from torchvision.datasets import CIFAR100

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for part, train in (("train", True), ("test", False)):
            try:
                reader = CIFAR100(str(data_root), train=train, download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"CIFAR-100 could not be fetched ({error}): put cifar-100-python.tar.gz into {data_root} and try again"
                ) from error
            lay_out(reader.data, reader.targets, reader.classes, part, Path(temporary))
        for split in SPLITS:
            shutil.move(Path(temporary) / split, folder / split)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--download", action="store_true", help="make the image tree from the ordinary CIFAR-100 files")
    args = parser.parse_args(argv)

    def collect(spec: DatasetSpec, data_root: Path) -> dict[str, ClassFiles]:
        if args.download:
            download(data_root, data_root / spec.folder)
        return split_folders(data_root / spec.folder)

    run_script("cifar100", collect, args.data_root)


if __name__ == "__main__":
    main()
