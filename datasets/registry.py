"""The table of image sets: one row each, the only place that knows them by name."""

from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.names import meant

DATA_ROOT = Path("DFL2Ldata")  # where image sets and teachers lie, unless --data_root says otherwise
SPLITS = ("meta_train", "meta_val", "meta_test")
SPLITS_OF = {"few_shot": SPLITS, "classification": ("train", "test")}  # by the task that a set serves
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
    classes: tuple[int, ...]  # published number of classes in each split
    images: int  # published number of images
    script: str  # what writes its lists
    pretrain_epochs: int = 60
    flip: bool = True  # whether a mirrored image is still an image of its class
    recolour: bool = False  # whether colours mean nothing
    center_crop: float | None = None  # of the shorter side: the middle square that is read; None: the whole image, squashed
    task: str = "few_shot"
    root: Path | None = None  # of the images of a set of the user's own, which does not lie below the data root

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS_OF[self.task]


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
WHOLE_SCRIPT = "write_whole_filelist.py"
WHOLE_SPECS = {  # whole sets, the same classes in train and test; few-shot sets of the same name are others
    spec.name: spec
    for spec in (
        DatasetSpec(
            "cifar10", "cifar10", 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), (10, 10), 60_000, WHOLE_SCRIPT,
            task="classification",
        ),
        DatasetSpec("cifar100", "cifar100_whole", 32, *CIFAR, (100, 100), 60_000, WHOLE_SCRIPT, task="classification"),
        DatasetSpec(
            "imagenet", "imagenet", 224, *IMAGENET, (1000, 1000), 1_331_167, WHOLE_SCRIPT, task="classification",
            center_crop=224 / 256,
        ),
    )
}  # fmt: skip
SETS = {"few_shot": SPECS, "classification": WHOLE_SPECS}
MIX = ("cifar100", "miniimagenet", "cub")  # what the papers' `--dataset mix` means


def get_spec(name: str, task: str = "few_shot") -> DatasetSpec:
    """The row of `name` among the sets of a task. Raises `UserError` listing them when there is none."""
    if name not in SETS[task]:
        more = f" (or mix: {' + '.join(MIX)}, or a folder of classes)" if task == "few_shot" else ""
        raise UserError(f"unknown dataset {name!r}: choose from {', '.join(SETS[task])}{more}{meant(name, SETS[task])}")
    return SETS[task][name]


def is_mix(name: str) -> bool:
    """Whether `--dataset name` means several sets."""
    return name == "mix"


def mixture() -> list[DatasetSpec]:
    """The papers' three sets."""
    return [SPECS[member] for member in MIX]
