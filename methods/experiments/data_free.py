"""Distilling one teacher without data: the epochs that Fast-Datafree and the rows it is compared with share."""

import argparse
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from datasets.image_files import images_of, read_images
from methods.distillation.divergences import kl_divergence
from methods.experiments.whole_class import StudentSpec, WholeClassMethod
from methods.inversion.terms import add_term_flags, weights_of
from methods.memory.images import ImagePool
from methods.teachers.pool import TeacherPool
from utils import cli, distributed
from utils.errors import UserError
from utils.images import Grid, to_float, to_uint8

LAST_RATE = 2e-4
# 800 steps of the student on small batches: the short runs of docs/
SHORT: dict[str, Any] = {"epochs": 20, "ep_steps": 40, "batch_size": 64}


# Flags of generation that not every method has -> what they are where they are not typed
OPTIONAL: dict[str, Any] = {
    "T": 20.0, "cr": 0.0, "cr_T": 0.5, "cmi_init": None, "lr_z": 1e-3, "bn_mmt": 0.0, "reset_l0": 0, "is_maml": 1,
}  # fmt: skip


class DataFreeDistillation(WholeClassMethod):
    """Epochs of `ep_steps` student steps, `kd_steps` of them after each call of `synthesize`.

    READS: the flags of generation that the method has beside the weights of terms; the papers' scripts type them all for
    every method. The student's rate follows a cosine from the end of warm-up to the end of the run.
    """

    READS: ClassVar[tuple[str, ...]] = ()
    QUICK: ClassVar[dict[str, Any]] = SHORT

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        add_generation_flags(group)

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.ep_steps < args.kd_steps:
            raise UserError(f"--ep_steps {args.ep_steps} is less than --kd_steps {args.kd_steps}: an epoch would make no step")
        if args.warmup >= args.epochs:
            raise UserError(f"--warmup {args.warmup} leaves none of --epochs {args.epochs} for the student")
        if args.synthesis_batch_size is None:
            args.synthesis_batch_size = args.batch_size

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        self.weights = weights_of(args)
        if args.bn and not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in self.teacher.network.modules()):
            raise UserError(f"--bn {args.bn:g}: {args.teacher} has no batch normalisation to compare with; use --bn 0")
        usual = OPTIONAL | dict(self.SHARED_DEFAULTS)
        unread = [name for name in OPTIONAL if name not in self.READS and getattr(args, name) != usual[name]]
        if unread:
            print(f"note: --method {args.method} has no {', '.join(unread)}: what was typed has no effect", file=sys.stderr)

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler:
        return CosineAnnealingLR(optimizer, self.args.epochs - self.args.warmup, eta_min=LAST_RATE)

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One epoch."""
        args, numbers = self.args, {}
        calls = args.ep_steps // args.kd_steps
        for place in range(1, calls + 1):
            with self.clock("generation"):
                numbers = self.synthesize(iteration, iteration * calls + place)
            if iteration >= args.warmup:
                with self.clock("distillation"):
                    numbers |= self.distil(args.kd_steps)
        if iteration >= args.warmup:
            self.student.schedule.step()
        return numbers

    def synthesize(self, iteration: int, call: int) -> dict[str, float]:
        """Make images, or move what makes them, by --g_steps steps; calls count from 1 over the whole run."""
        raise NotImplementedError

    def sample(self, count: int) -> Tensor:
        """Images (count, C, S, S) in [0, 1] for a step of the student."""
        raise NotImplementedError

    def difference(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """What the student minimises."""
        return kl_divergence(teacher_logits, student_logits, self.args.T)

    def distil(self, steps: int) -> dict[str, float]:
        """Steps of the student towards the teacher; the mean loss, and how often both named the same class."""
        losses, same = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for _ in range(steps):
            images = self.sample(self.args.batch_size)
            with torch.no_grad():
                wanted = distributed.by_shares(self.teacher, images)
            loss, outputs = self.student.update(images, wanted, self.difference)
            losses += loss
            same += (outputs.argmax(1) == wanted.argmax(1)).to(outputs.dtype).mean()
        return {"distillation_loss": float(losses) / steps, "agreement": float(same) / steps}

    @torch.no_grad()
    def images_to_compare(self, count: int) -> Tensor:
        size = self.args.batch_size
        return torch.cat([to_uint8(self.sample(size)).cpu() for _ in range(-(-count // size))])[:count]

    def pictures(self) -> dict[str, Grid]:
        return {"synthetic": Grid(self.images_to_compare(64), 8)}

    def summary(self) -> dict[str, Any]:
        return {"inversion_of_one_teacher": {"images": self.args.synthesis_batch_size, "steps": self.args.g_steps}}


class PooledDistillation(DataFreeDistillation):
    """The student learns from all images made so far, shifted and mirrored anew each time."""

    STATE: ClassVar[tuple[str, ...]] = (*DataFreeDistillation.STATE, "images")

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        size = spec.image_size
        self.images = ImagePool(size, self.device, args.pool_on_device)
        if args.cmi_init:
            self.images.add(to_float(read_images(images_of(args.cmi_init), size).to(self.device)))

    def draw_labels(self) -> Tensor:
        """Random classes for a batch, sorted, so that a grid of its images is easy on the eye."""
        return torch.randint(len(self.spec.class_names), (self.args.synthesis_batch_size,)).sort().values

    def sample(self, count: int) -> Tensor:
        return self.augmentation(to_float(self.images.sample(count)))

    def pictures(self) -> dict[str, Grid]:
        return {"synthetic": Grid(self.images.newest(64), 8)}


def add_generation_flags(group: argparse._ArgumentGroup) -> None:
    """What the papers' scripts type for every method alike."""
    text = "temperature of the divergence from the teacher (of DAFL, ZSKT, DFAD and DFQ it is 1)"
    group.add_argument("--T", type=cli.rate, default=OPTIONAL["T"], help=text)
    group.add_argument(
        "--warmup", type=cli.whole(0), default=0, help="first epochs, in which images are made and no student learns"
    )
    group.add_argument("--kd_steps", type=cli.count, default=400, help="student steps after each call of generation")
    group.add_argument("--ep_steps", type=cli.count, default=400, help="student steps of an epoch")
    group.add_argument("--g_steps", type=cli.count, default=1, help="steps of a call of generation")
    group.add_argument("--lr_g", type=cli.rate, default=1e-3, help="learning rate of generation")
    group.add_argument("--synthesis_batch_size", type=cli.count, help="images of a call (default: --batch_size)")
    group.add_argument(
        "--pool_on_device",
        type=cli.count,
        default=200_000,
        help="images kept on the device, up to 2 GiB of them; more go to the host",
    )
    add_term_flags(group)
    group.add_argument("--cr", type=cli.weight, default=OPTIONAL["cr"], help="weight of the contrast (CMI)")
    group.add_argument("--cr_T", type=cli.rate, default=OPTIONAL["cr_T"], help="temperature of the contrast")
    group.add_argument("--cmi_init", type=Path, help="folder of images that the pool starts with")
    group.add_argument("--lr_z", type=cli.rate, default=OPTIONAL["lr_z"], help="learning rate of the latents")
    group.add_argument(
        "--bn_mmt", type=cli.number(0, 1), default=OPTIONAL["bn_mmt"], help="momentum of the batch statistics over calls"
    )
    for name, text in (
        ("reset_l0", "draw the generator's linear layer and first normalisation anew, once (call 120 after warm-up)"),
        ("is_maml", "1: FOMAML, 0: Reptile"),
    ):
        group.add_argument(f"--{name}", type=int, choices=(0, 1), default=OPTIONAL[name], help=text)
    first = "--reset_l0 draws the one normalisation anew that the papers' code does"
    cli.without_effect(group, "--reset_bn", type=int, choices=(0, 1), reason=first)
