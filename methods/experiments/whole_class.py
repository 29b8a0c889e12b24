"""Whole sets: what methods that end with a student have in common, and the experiment around them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from datasets.registry import DatasetSpec, get_spec
from datasets.split import ImageSplit, csv_path, load_split
from methods import short_name
from methods.distillation.student import Student
from methods.evaluation.top1 import Classifier, agreement, top1
from methods.experiments.method import Method
from methods.experiments.whole_class_flags import add_whole_class_flags
from methods.teachers.classifiers import default_path, load_classifier, read_weights
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models import create_classifier
from utils import checkpoint
from utils.errors import UserError
from utils.files import digest
from utils.images import Augmentation, ImageForm
from utils.metrics import Score

IMAGES_COMPARED = 1000  # of which student and teacher are asked to agree


@dataclass(frozen=True)
class StudentSpec:
    """The student's architecture, its classes, the side of its images, and the image set that says the rest."""

    arch: str
    class_names: Sequence[str]
    image_size: int
    dataset: DatasetSpec
    named: bool = True  # whether the classes have names, and not only numbers

    @property
    def form(self) -> ImageForm:
        return ImageForm(self.image_size, self.dataset.mean, self.dataset.std)


class WholeClassMethod(Method):
    """A method that ends with a student: `Method(args, teachers, spec)`, with a pool of one teacher, or of none."""

    TASK = "classification"
    STATE: ClassVar[tuple[str, ...]] = ("student",)
    NEEDS_TEACHER: ClassVar[bool] = True
    spec: StudentSpec
    teacher_path: Path | None = None  # where others look for what was learnt, if it is to become a teacher

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        self.network = create_classifier(spec.arch, len(spec.class_names), spec.image_size)
        if args.student_ckpt:
            names = spec.class_names if spec.named else ()
            read_weights(self.network, args.student_ckpt, names, spec.form, spec.arch)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = self.network.parameters()
        optimizer = torch.optim.SGD(parameters, args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
        self.student = Student(self.network, spec.form.prepare, optimizer, self.make_schedule(optimizer))
        self.augmentation = Augmentation(spec.dataset.flip, spec.dataset.recolour)

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler:
        """How the student's rate moves, a step an epoch."""
        raise NotImplementedError

    @property
    def teacher(self) -> Teacher:
        return self.teachers[0]

    def images_to_compare(self, count: int) -> Tensor:
        """uint8 images (count, C, S, S), not of the test split, on which student and teacher can be compared."""
        raise NotImplementedError


class WholeClassExperiment:
    """One run of a whole-class method: finds set and teacher, builds the method, and does all but train.

    Raises `UserError`, before any work is done, for whatever is missing, with the commands that make it.
    """

    EARLIER: ClassVar[dict[str, Any]] = {}  # what runs did before there was a flag

    def __init__(self, method_class: type[WholeClassMethod], args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        dataset = get_spec(args.dataset, WholeClassMethod.TASK)
        size = args.image_size or dataset.image_size
        self.test = self._test_split(dataset, size)
        names = self.test.class_names if self.test else [f"#{number:03d}" for number in range(args.num_classes)]
        if args.num_classes not in (None, len(names)):
            raise UserError(f"--num_classes {args.num_classes}: the lists of {dataset.name} have {len(names)}; leave it out")
        self.spec = StudentSpec(args.student, names, size, dataset, named=self.test is not None)
        self.teachers, path = TeacherPool([], device), None
        if method_class.NEEDS_TEACHER:
            if args.pretrained and args.teacher_ckpt:
                raise UserError("--pretrained and --teacher_ckpt both say where the teacher's weights are: leave one out")
            path = args.teacher_ckpt or (None if args.pretrained else default_path(args.dataset, args.teacher))
            teacher = load_classifier(args.teacher, path, dataset, names, size, device, self.spec.named)
            self.teachers = TeacherPool.of([teacher], dataset.name)
        if args.embed_plot and (self.test is None or not method_class.NEEDS_TEACHER):
            raise UserError("--embed_plot needs a teacher and test images to set beside the synthetic ones")
        self.stands_on = self._ground(path)  # as it is now: files may be written anew while it runs
        self.method = method_class(args, self.teachers, self.spec)

    @staticmethod
    def add_flags(parser: argparse.ArgumentParser, method_class: type[WholeClassMethod]) -> None:
        """The flags that all whole-class methods share."""
        add_whole_class_flags(parser)

    @staticmethod
    def finish_args(method_class: type[WholeClassMethod], args: argparse.Namespace) -> None:
        """Fill what depends on other flags; raise `UserError` for values that contradict each other."""
        if args.save_dir:
            if args.run_name:
                raise UserError("--save_dir and --run_name both name the run directory: leave one of them out")
            args.out, args.run_name = args.save_dir.parent, args.save_dir.name
        method_class.finish_args(args)

    @staticmethod
    def restore_args(args: argparse.Namespace) -> None:
        """What args.json holds as text is what the flags give already."""

    @staticmethod
    def default_name(method_class: type[WholeClassMethod], args: argparse.Namespace) -> str:
        """A name for the run directory that says what the run is."""
        networks = f"{args.teacher}-{args.student}" if method_class.NEEDS_TEACHER else args.student
        name = "-".join(part for part in (short_name(args.method), args.dataset, networks, args.log_tag) if part)
        return name.replace("/", "_")

    def _ground(self, teacher: Path | None) -> list[str]:
        """What must be as it was when a run goes on: the classes, in their order, and the files that weights are from."""
        files = {"teacher": teacher, "student": self.args.student_ckpt}
        weights = [f"the file of the {what}, {digest(path)[:12]}" for what, path in files.items() if path and path.is_file()]
        return [f"the class {name}" for name in self.spec.class_names] + weights

    @property
    def num_iterations(self) -> int:
        return 0 if self.args.evaluate_only else self.args.epochs

    @property
    def val_interval(self) -> int:
        """Epochs between validations."""
        return self.args.val_interval

    def plan(self) -> list[str]:
        """What a dry run says about what is there."""
        return [f"classes: {len(self.spec.class_names)}, test images: {len(self.test.labels) if self.test else 0}"]

    def _test_split(self, dataset: DatasetSpec, size: int) -> ImageSplit | None:
        """The test images; `None` where there are none and --num_classes says how many classes the teacher has."""
        args = self.args
        listed = csv_path(dataset, "test", args.data_root).is_file()
        if args.num_classes is not None and not listed:
            return None
        try:
            return load_split(dataset, "test", args.data_root, size)
        except UserError as error:
            if listed:
                raise
            raise UserError(
                f"{error} --dataset {dataset.name}, or give --num_classes to do without images (the student is not evaluated)"
            ) from error

    def validate(self) -> dict[str, Score]:
        """The scores whose mean selects what is kept, by what they are; none: the last epoch is kept."""
        select_on, method = self.args.select_on, self.method
        if select_on == "test":
            return {f"test/{name}": score for name, score in self.evaluate().items()}
        if select_on == "agreement":
            with method.clock("evaluation"):
                images = method.images_to_compare(IMAGES_COMPARED)
                return {"agreement": agreement(method.student.logits, method.teacher, images, self.device)}
        return {}

    def evaluate(self) -> dict[str, Score]:
        """Top-1 accuracy of the student on the test split; nothing where there are no test images."""
        with self.method.clock("evaluation"):
            return {self.spec.dataset.name: self.score(self.method.student.logits)} if self.test else {}

    def score(self, classifier: Classifier) -> Score:
        assert self.test is not None
        return top1(classifier, self.test.images, self.test.labels, self.device)

    def best_state(self) -> dict[str, Any]:
        """What `best.pt` holds of the present epoch: what was learnt, and all that using it needs."""
        spec = self.spec
        return {
            "state_dict": self.method.network.loadable.state_dict(),
            "arch": spec.arch,
            "image_size": spec.image_size,
            "mean": list(spec.dataset.mean),
            "std": list(spec.dataset.std),
            "dataset": spec.dataset.name,
            "class_names": list(spec.class_names),
        }

    def load_best(self, state: dict[str, Any]) -> None:
        """Go back to what was kept."""
        checkpoint.load_weights(self.method.network.loadable, state["state_dict"], "the saved student")

    def finish(self) -> str:
        """Keep what was learnt where others look for a teacher, if that is what the run is for; returns what to say."""
        path = self.method.teacher_path
        if path is None or self.args.evaluate_only:
            return ""
        if path.exists() and not self.args.replace_teacher:  # since the run began
            return f"{path} exists already and is not replaced (--replace_teacher does): the teacher is in the run's best.pt"
        checkpoint.save(self.best_state(), path)
        return f"the teacher is in {path}"
