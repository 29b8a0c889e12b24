"""With real images: a classifier from scratch (`scratch`), and ordinary distillation into a student (`vanilla_kd`).

They make the teachers of data-free distillation and say what it could reach (Hinton et al., 2015).

Deviations
----------
From Fast-Datafree's code:
- The last epoch is kept; the code keeps the one that is best on the test set (`--select_on test`).
- `--transfer_set` names an image set; the code's takes a folder.
"""

import argparse
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from datasets.registry import get_spec
from datasets.split import load_split
from methods.distillation.divergences import kl_divergence
from methods.distillation.student import Loss
from methods.experiments.whole_class import StudentSpec, WholeClassMethod
from methods.teachers.classifiers import default_path
from methods.teachers.pool import TeacherPool
from utils import cli, distributed
from utils.errors import UserError
from utils.images import take, to_float
from utils.names import check_same_classes
from utils.progress import Progress


def milestones(text: str) -> list[int]:
    """A flag's value: epochs, separated by commas."""
    return [cli.whole(0)(part) for part in text.split(",") if part]


class Supervised(WholeClassMethod):
    """Epochs over real images, shifted and mirrored anew each time; the rate falls by `FALL` at each milestone."""

    FALL: ClassVar[float]

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--lr_decay_milestones", type=milestones, default=[120, 150, 180], help="epochs at which the rate falls"
        )

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        dataset = get_spec(self.training_set, self.TASK)
        self.train = load_split(dataset, "train", args.data_root, spec.image_size).to(self.device)
        if self.training_set == args.dataset:
            folder = f"{dataset.folder}/train"
            check_same_classes(self.train.class_names, spec.class_names, folder, f"{dataset.folder}/test")

    @property
    def training_set(self) -> str:
        return self.args.dataset

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler:
        return MultiStepLR(optimizer, self.args.lr_decay_milestones, gamma=self.FALL)

    def loss_of(self, images: Tensor) -> Loss:
        """The loss of the student's logits (B, N) on images (B, C, S, S), as a function of the logits and the labels (B,)."""
        raise NotImplementedError

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One epoch."""
        total, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        with self.clock("training"):
            order = torch.randperm(len(self.train.images)).to(self.device)
            for batch in Progress(order.split(self.args.batch_size), desc="epoch", unit="batch", leave=False):
                images = self.augmentation(to_float(take(self.train.images, batch)))
                labels = self.train.labels[batch]
                loss, outputs = self.student.update(images, labels, self.loss_of(images))
                total += loss * len(batch)
                right += (outputs.argmax(1) == labels).sum()
            self.student.schedule.step()
        return {"loss": float(total) / len(order), "train_accuracy": float(right) / len(order)}


class Scratch(Supervised):
    """A classifier trained on a whole set, and kept as a teacher: `pretrain.py --full`."""

    NEEDS_TEACHER = False
    FALL = 0.2
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"dataset": "cifar10", "student": "wrn40_2", "batch_size": 256}

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        Supervised.add_args(group)
        cli.may_change(
            "always",
            group.add_argument("--replace_teacher", action="store_true", help="replace the teacher's file, if there is one"),
        )

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.seeds:
            raise UserError("--seeds: the runs would all write one teacher's file; train one, or name a file for each")

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        self.teacher_path = args.teacher_ckpt or default_path(args.dataset, args.student)
        if args.select_on == "agreement":
            raise UserError("--select_on agreement: there is no teacher to agree with; choose last or test")
        begins = not (args.resume or args.evaluate or args.evaluate_only)
        if begins and self.teacher_path.exists() and not args.replace_teacher:
            raise UserError(
                f"{self.teacher_path} exists already: use it, name another file by --teacher_ckpt, or add --replace_teacher"
            )

    def loss_of(self, images: Tensor) -> Loss:
        return F.cross_entropy


class VanillaKD(Supervised):
    """alpha * KL(teacher || student) at temperature T + beta * cross entropy, on real images."""

    PAPER = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    FALL = 0.1
    QUICK: ClassVar[dict[str, Any]] = {"epochs": 10, "batch_size": 64, "lr_decay_milestones": [6, 8, 9]}

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        Supervised.add_args(group)
        group.add_argument("--transfer_set", help="set whose training images are used (default: --dataset)")
        group.add_argument("--alpha", type=cli.weight, default=1.0, help="weight of the teacher's answers")
        group.add_argument("--beta", type=cli.weight, help="weight of the labels (default: 0.1; 0 with another --transfer_set)")
        group.add_argument("--T", type=cli.rate, default=1.0, help="temperature")

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.transfer_set is None:
            args.transfer_set = args.dataset
        if args.beta is None:
            args.beta = 0.1 if args.transfer_set == args.dataset else 0.0
        if args.beta and args.transfer_set != args.dataset:
            raise UserError(
                f"--beta {args.beta:g}: the labels of {args.transfer_set} are not the teacher's classes; use --beta 0"
            )

    @property
    def training_set(self) -> str:
        return self.args.transfer_set

    def loss_of(self, images: Tensor) -> Loss:
        with torch.no_grad():
            wanted = distributed.by_shares(self.teacher, images)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            soft = self.args.alpha * kl_divergence(wanted, logits, self.args.T)
            return soft + self.args.beta * F.cross_entropy(logits, labels) if self.args.beta else soft

        return loss

    def images_to_compare(self, count: int) -> Tensor:
        chosen = torch.randperm(len(self.train.images))[:count]
        return self.train.images[chosen.to(self.device)].cpu()
