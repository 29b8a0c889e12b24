"""The table of image sets: one row each, the only place that knows them by name."""

from dataclasses import dataclass

from utils.errors import UserError

SPLITS = ("meta_train", "meta_val", "meta_test")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
HALF = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@dataclass(frozen=True)
class DatasetSpec:
    """What the program must know of an image set before it has seen a file of it."""

    name: str
    folder: str  # below the data root
    image_size: int  # pixels, height and width, after decoding
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[int, int, int]  # published numbers of classes in meta_train, meta_val, meta_test
    images: int  # published number of images
    script: str  # what writes its lists
    pretrain_epochs: int = 60
    flip: bool = True  # whether a mirrored image is still an image of its class
    recolour: bool = False  # whether colours mean nothing
    channels: int = 3


SPECS = {
    spec.name: spec
    for spec in (
        DatasetSpec("cifar100", "cifar100", 32, *CIFAR, (64, 16, 20), 60_000, "write_cifar100_filelist.py"),
        DatasetSpec("miniimagenet", "Miniimagenet", 84, *IMAGENET, (64, 16, 20), 60_000, "write_miniimagenet_filelist.py"),
        DatasetSpec("cub", "CUB_200_2011", 84, *IMAGENET, (100, 50, 50), 11_788, "write_CUB_filelist.py", pretrain_epochs=100),
        DatasetSpec("flower", "flower", 84, *IMAGENET, (71, 15, 16), 8_189, "write_flower_filelist.py"),
        DatasetSpec("glyphs", "glyphs", 32, *HALF, (64, 16, 20), 20_000, "write_glyphs_filelist.py", flip=False, recolour=True),
    )
}
MIX = ("cifar100", "miniimagenet", "cub")  # what the papers' `--dataset mix` means


def get_spec(name: str) -> DatasetSpec:
    """The row of `name`. Raises `UserError` listing the sets when there is none."""
    if name not in SPECS:
        raise UserError(f"unknown dataset {name!r}: choose from {', '.join(SPECS)} (or mix: {' + '.join(MIX)})")
    return SPECS[name]


def get_domains(name: str) -> list[DatasetSpec]:
    """The sets that `--dataset name` stands for: one, or the papers' three for `mix`."""
    return [SPECS[member] for member in MIX] if name == "mix" else [get_spec(name)]
