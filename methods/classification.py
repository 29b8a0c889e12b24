"""What all whole-class methods have in common: a set, a teacher, a student, its exam, and the flags of Fast-Datafree."""

import argparse
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from datasets.registry import DatasetSpec, get_spec
from datasets.split import ImageSplit, csv_path, load_split
from methods.base import Method
from methods.distillation.student import Student
from methods.evaluation.top1 import Classifier, agreement, top1
from methods.teachers.pool import Teacher
from methods.teachers.whole_class import default_path, load_classifier, read_weights
from models import CLASSIFIERS, create_classifier
from utils import checkpoint, cli
from utils.errors import UserError
from utils.images import Augmentation, channels_last, normalise, resize
from utils.metrics import Score

IMAGES_COMPARED = 1000  # of which student and teacher are asked to agree


class ClassificationMethod(Method):
    """A method that ends with a student, judged by its top-1 accuracy on the test split of the teacher's classes."""

    TASK = "classification"
    STATE: ClassVar[tuple[str, ...]] = ("student",)
    NEEDS_TEACHER: ClassVar[bool] = True

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        self.spec: DatasetSpec = get_spec(args.dataset, self.TASK)
        self.image_size = args.image_size or self.spec.image_size
        self.test = self._test_split()
        self.class_names = self.test.class_names if self.test else [f"#{number:03d}" for number in range(args.num_classes)]
        self._teacher = self._load_teacher() if self.NEEDS_TEACHER else None
        self.network = create_classifier(args.student, len(self.class_names), self.image_size)
        if args.student_ckpt:
            read_weights(self.network, args.student_ckpt)
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = self.network.parameters()
        optimizer = torch.optim.SGD(parameters, args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
        self.student = Student(self.network, self.as_input, optimizer, self.make_schedule(optimizer))
        self.augmentation = Augmentation(self.spec.flip, self.spec.recolour)

    @classmethod
    def add_shared_args(cls, parser: argparse.ArgumentParser) -> None:
        add_classification_flags(parser)

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.save_dir:
            if args.run_name:
                raise UserError("--save_dir and --run_name both name the run directory: leave one away")
            args.out, args.run_name = args.save_dir.parent, args.save_dir.name

    @classmethod
    def default_name(cls, args: argparse.Namespace) -> str:
        networks = f"{args.teacher}-{args.student}" if cls.NEEDS_TEACHER else args.student
        name = "-".join(part for part in (args.method, args.dataset, networks, args.log_tag) if part)
        return name.replace("/", "_")

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler:
        """How the student's rate moves, a step an epoch."""
        raise NotImplementedError

    @property
    def teacher(self) -> Teacher:
        """The teacher of a method that needs one."""
        assert self._teacher is not None
        return self._teacher

    @property
    def num_iterations(self) -> int:
        return 0 if self.args.evaluate_only else self.args.epochs

    @property
    def val_interval(self) -> int:
        return self.args.val_interval

    def as_input(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) in [0, 1] to the student's size and normalisation."""
        return channels_last(normalise(resize(images, self.image_size), self.spec.mean, self.spec.std))

    def load_split(self, name: str, dataset: str | None = None) -> ImageSplit:
        """A split of the set, or of another one, at the student's size."""
        return load_split(get_spec(dataset or self.args.dataset, self.TASK), name, self.args.data_root, self.image_size)

    def _test_split(self) -> ImageSplit | None:
        """The test images; `None` where there are none and --num_classes says how many classes the teacher has."""
        if self.args.num_classes is not None and not csv_path(self.spec, "test", self.args.data_root).is_file():
            return None
        try:
            return self.load_split("test")
        except UserError as error:
            if csv_path(self.spec, "test", self.args.data_root).is_file():
                raise
            raise UserError(
                f"{error} --dataset {self.spec.name}, or give --num_classes to do without images (the student is not evaluated)"
            ) from error

    def _load_teacher(self) -> Teacher:
        args = self.args
        path = args.teacher_ckpt or (None if args.pretrained else default_path(args.dataset, args.teacher))
        return load_classifier(args.teacher, path, self.spec, self.class_names, self.image_size, self.device)

    # ------------------------------------------------------------ what the student is worth

    def evaluate(self, split: str) -> dict[str, Score]:
        """Top-1 accuracy of the student; nothing where there are no test images."""
        with self.clock("evaluation"):
            return {self.spec.name: self.examine(self.student.logits)} if self.test else {}

    def examine(self, classifier: Classifier) -> Score:
        assert self.test is not None
        return top1(classifier, self.test.images, self.test.labels, self.device)

    def look(self) -> dict[str, Score]:
        select_on = self.args.select_on
        if select_on == "test":
            return {f"test/{name}": score for name, score in self.evaluate("test").items()}
        if select_on == "agreement":
            with self.clock("evaluation"):
                images = self.images_to_compare(IMAGES_COMPARED)
                return {"agreement": agreement(self.student.logits, self.teacher, images, self.device)}
        return {}

    def images_to_compare(self, count: int) -> Tensor:
        """uint8 images (count, C, S, S), not of the test split, on which student and teacher can be compared."""
        raise NotImplementedError

    def to_keep(self) -> dict[str, Any]:
        return {
            "state_dict": self.network.loadable.state_dict(),
            "arch": self.args.student,
            "image_size": self.image_size,
            "mean": list(self.spec.mean),
            "std": list(self.spec.std),
            "dataset": self.spec.name,
            "class_names": self.class_names,
        }

    def take_back(self, kept: dict[str, Any]) -> None:
        checkpoint.load_weights(self.network.loadable, kept["state_dict"], "the saved student")


def add_classification_flags(parser: argparse.ArgumentParser) -> None:
    """Set, networks, the student's training, its exam, and where everything goes."""
    networks = f"{', '.join(CLASSIFIERS)}, torchvision/NAME or timm/NAME"
    group = parser.add_argument_group("set and networks")
    group.add_argument("--dataset", default="cifar100", help="cifar10, cifar100 (whole sets) or imagenet")
    group.add_argument("--data_root", type=Path, default=Path("DFL2Ldata"), help="folder of image sets")
    group.add_argument("--image_size", type=cli.count, help="images' height and width (default: the set's own)")
    group.add_argument("--num_classes", type=cli.count, help="the teacher's classes, where there are no test images")
    group.add_argument("--teacher", default="wrn40_2", help=networks)
    group.add_argument("--student", "--model", dest="student", default="wrn16_1", help="the same")
    group.add_argument(
        "--teacher_ckpt", type=Path, help="the teacher's file (default: checkpoints/pretrained/<set>_<arch>.pth)"
    )
    group.add_argument("--pretrained", action="store_true", help="take torchvision's weights for the teacher")
    group.add_argument("--student_ckpt", type=Path, help="weights that the student starts from")

    group = parser.add_argument_group("the student's training")
    group.add_argument("--epochs", "--epoch", dest="epochs", type=cli.count, default=200, help="epochs")
    group.add_argument("-b", "--batch_size", dest="batch_size", type=cli.count, default=128, help="images of a step")
    group.add_argument("--lr", "--learning_rate", dest="lr", type=cli.rate, default=0.1, help="learning rate (SGD)")
    group.add_argument("--momentum", type=float, default=0.9, help="momentum")
    group.add_argument("--wd", "--weight_decay", dest="weight_decay", type=float, default=1e-4, help="weight decay")

    group = parser.add_argument_group("evaluation")
    group.add_argument("--evaluate_only", action="store_true", help="score the student as it is (--student_ckpt) and stop")
    group.add_argument(
        "--select_on", choices=("last", "agreement", "test"), default="last",
        help="what picks the student: the last epoch, agreement with the teacher on images that are not of the test split, or "
        "the test split itself as in the papers' code, which marks the result",
    )  # fmt: skip
    group.add_argument("--val_interval", type=cli.count, default=10, help="epochs between looks")
    group.add_argument("--save_images", action="store_true", help="write grids of pseudo-images at every look")
    group.add_argument(
        "--embed_plot", nargs="?", const="tsne", choices=("tsne", "pca"),
        help="picture of the teacher's features of synthetic and real images (tsne or pca)",
    )  # fmt: skip
    group.add_argument("--no_floors", action="store_true", help="leave the teacher's own accuracy out of the report")

    group = parser.add_argument_group("places and what does nothing")
    group.add_argument("--save_dir", type=Path, help="the run directory; must be new")
    group.add_argument("--log_tag", default="", help="added to the name of the run")
    for name in ("world_size", "rank", "dist_url", "dist_backend", "start_epoch"):
        group.add_argument(f"--{name}", help="accepted for the papers' scripts")
    group.add_argument("-j", "--workers", dest="workers", help="accepted for the papers' scripts")
    group.add_argument("-p", "--print_freq", dest="print_freq", help="accepted for the papers' scripts")
    for name in ("multiprocessing_distributed", "fp16"):
        group.add_argument(f"--{name}", action="store_true", default=None, help="accepted for the papers' scripts")
