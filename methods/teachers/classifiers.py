"""One teacher of all classes of a set, as data-free distillation has it: where its file lies, and loading it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.registry import DatasetSpec
from methods.teachers.inspection import inspect
from methods.teachers.teacher import Teacher
from models import create_classifier
from models.backbone import Backbone
from models.foreign import Foreign
from models.said import check_said
from models.state_dicts import load_into, read_content
from utils import checkpoint, seed
from utils.errors import UserError
from utils.images import ImageForm

PRETRAINED = "IMAGENET1K_V1"  # torchvision's name for the weights that the papers' ImageNet recipe starts from


def default_path(dataset: str, arch: str) -> Path:
    """Where Fast-Datafree's commands look for a teacher, and where `pretrain.py --full` puts one."""
    return Path("checkpoints") / "pretrained" / f"{dataset}_{arch.replace('/', '_')}.pth"


def read_weights(network: Backbone, path: Path, class_names: Sequence[str], form: ImageForm, arch: str) -> None:
    """Load a checkpoint, ours or of Fast-Datafree's code, into `network`.

    Raises `UserError` where it does not fit, or says of itself that it is something else; no `class_names`: nobody knows them.
    """
    content = read_content(checkpoint.load(path), str(path))
    for note in load_into(network, content, str(path)):
        print(f"note: {path}: {note}", file=sys.stderr)
    check_said(content.said, class_names, form.size, form.mean, form.std, arch, str(path))


def load_classifier(
    arch: str,
    path: Path | None,
    spec: DatasetSpec,
    class_names: Sequence[str],
    image_size: int,
    device: torch.device,
    named: bool = True,
) -> Teacher:
    """The frozen classifier of a checkpoint, ours or of Fast-Datafree's code; without `path`, torchvision's weights.

    named: whether `class_names` are names, which a file may contradict, and not only numbers.
    Raises `UserError` for a missing file, with the command that makes it, and for one that does not fit.
    """
    if path is not None and not path.is_file():
        raise UserError(
            f"no teacher in {path}: train it with\n  python pretrain.py --full --model {arch} --dataset {spec.name}\n"
            "or name a file by --teacher_ckpt"
        )
    with seed.kept():  # what a teacher starts from must not change what the run draws
        network = create_classifier(arch, len(class_names), image_size, None if path else PRETRAINED)
    form = ImageForm(image_size, spec.mean, spec.std)
    if path is not None:
        read_weights(network, path, class_names if named else (), form, arch)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher = Teacher(network, class_names, form, arch=arch)
    if isinstance(network, Foreign):
        for note in inspect(teacher, str(path or arch)).notes:
            print(f"note: {path or arch}: {note}", file=sys.stderr)
    return teacher
