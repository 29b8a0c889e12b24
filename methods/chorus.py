"""Chorus: one small learner that has heard all teachers. This project's own method; docs/chorus.md tells it with figures.

Frozen teachers, put side by side, tell new classes apart far better than one of them, and better than what is
meta-learned from their pseudo-images. What they know together is distilled into one learner:

1. Draw images that ask the teachers something: by random processes that make natural images' colours, shapes and textures,
   and, of white boxes, inverted pixel by pixel (`--sources`).
2. Ask every teacher once about every image and its mirror image. The target of an image is what all say, side by side:
   each teacher's centred log-probabilities, scaled to length 1 (`--targets answers`; probabilities suffice, a black box
   will do). Of a teacher of many classes, the directions in which its answers differ most. An image and its mirror image
   are told the mean of both, for that is what is read.
3. Regress the targets: one output for each class of each teacher, 64 of one at most, `--epochs` passes.
4. Read the outputs half whitened, over an image and its mirror image (`--readout whitened mirror`), and tell new classes
   apart by the nearest class mean (`--metalearner ncm`).

No labels, no episodes and no adversary are used. `--black_box` uses nothing of the teachers but one answer to each image;
`--query_budget` then limits the images.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.distillation.divergences import regression, relational
from methods.distillation.student import LearnersStudent, Loss
from methods.experiments.few_shot import FewShotMethod
from methods.experiments.settings import Setting
from methods.metalearners.learner import LearnerSpec
from methods.services.black_box import add_black_box_flags
from methods.services.meter import Meter
from methods.teachers.pool import TeacherPool
from methods.teachers.sources import NOT_DATA_FREE, Sources, add_source_flags, at_once, finish_sources
from methods.teachers.views import ask_everybody, calls_for, widths_of
from utils import cli
from utils.errors import BudgetSpent, UserError
from utils.images import Grid
from utils.kept import Kept
from utils.room import room_for

LOSSES: dict[str, Loss] = {"regression": regression, "relational": relational}
TARGETS = ("answers", "features")
SPARED = 50  # one in so many queries of a budget is left for requests that must be repeated


class Chorus(FewShotMethod):
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"epochs": 12, "val_interval": 3, "metalearner": "ncm"}
    SETTINGS = (Setting({"metalearner": "ncm"}, {"readout": ["whitened", "mirror"]}),)
    STATE = ("scale", "student")

    def prepare(self, folder: Path) -> str:
        """Draw the images and ask the teachers about them; what costs time is kept in the folder of runs for the next time.

        Images and targets that a fourth of the memory cannot hold are streamed from files there.
        """
        self.student.check_goes_on()
        args, resumed = self.args, "generation" in self.clock.seconds
        with self.clock("generation"):
            size = self.learner.spec.image_size
            self.images = room_for((self.per_image * self.count, 3, size, size), torch.uint8, self.device, args.out)
            self.sources.draw(self.images[: self.count])
            for some, mirrored in self._pairs(self.images, at_once(size)):
                mirrored.copy_(some.flip(-1))
        with self.clock("asking"):
            meter = self.meter.keep(folder)
            try:
                self.targets = room_for((len(self.images), self.learner.spec.way), torch.float16, self.device, args.out)
                ask_everybody(self.teachers, args.targets, self.images, self.targets, self.kept, args.seed, meter)
            except BudgetSpent as spent:
                raise UserError(
                    f"{spent}, many of them repeats: start anew with --num_images {self.count} and a higher --query_budget; "
                    "what was answered is kept"
                ) from spent
            for some, mirrored in self._pairs(self.targets, 10_000):
                some.copy_((some + mirrored) / 2)
                mirrored.copy_(some)
            self.scale.fit(self.targets)
        if self.kept.seconds and not resumed:
            self.clock.seconds["made by an earlier run"] = self.kept.seconds
        return (
            f"{len(self.images)} images of {', '.join(dict.fromkeys(args.sources))}; targets of {self.targets.shape[1]} numbers"
        )

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One pass of regression over the images."""
        with self.clock("distillation"):
            loss = self.student.epoch(self.images, self.targets, LOSSES[self.args.loss], self.args.batch_size)
        self.student.teach()
        return {"loss": loss}

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        """The learner has as many outputs as there are targets, and no statistics of the batch at hand."""
        outputs = sum(widths_of(teachers, args.targets))
        super().__init__(args, teachers, replace(spec, way=outputs, norm="fixed"))
        self.count = args.num_images
        self.per_image = 2 if args.mirror and teachers.augmentation.flip else 1  # of each image
        if args.query_budget is not None:
            batches = [server.batch for server in teachers.servers]
            spare = max(args.query_budget // SPARED, *batches) if batches else 0
            self.count = min(self.count, (args.query_budget - spare) // (self.per_image * len(teachers)))
        if self.count < args.batch_size:
            raise UserError(
                f"{self.count} images (--num_images {args.num_images}, --query_budget {args.query_budget}) do not fill a "
                f"batch of {args.batch_size}: raise them or lower --batch_size"
            )
        self.student = LearnersStudent(self.learner, args.lr, args.epochs * (self.per_image * self.count // args.batch_size))
        self.scale, self.kept, self.meter = self.student.scale, Kept(args.out), Meter(args.query_budget, self.clock)
        self.sources = Sources(args, teachers, spec, self.kept)
        self.images = torch.zeros(0, 3, spec.image_size, spec.image_size, dtype=torch.uint8)  # until `prepare` draws them
        self.targets = torch.zeros(0, outputs, dtype=torch.float16)

    def _pairs(self, values: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Originals and mirror images of `values`, `count` rows of each at a time; nothing with --no_mirror."""
        if self.per_image == 2:
            yield from zip(*(half.split(count) for half in values.split(self.count)), strict=True)

    @classmethod
    def looks_inside(cls, args: argparse.Namespace) -> bool:
        return not args.black_box

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        add_source_flags(group)
        group.add_argument("--no_mirror", dest="mirror", action="store_false", help="do not ask about mirror images too")
        group.add_argument("--targets", choices=TARGETS, default="answers", help="what the learner regresses")
        group.add_argument(
            "--loss", choices=tuple(LOSSES), default="regression", help="mean squared error, or which images are alike"
        )
        group.add_argument("--lr", type=cli.rate, default=0.01, help="peak rate of the one-cycle schedule (Muon)")
        group.add_argument("--batch_size", type=cli.count, default=128, help="images of an update")
        group.add_argument("--black_box", action="store_true", help="use nothing of the teachers but their probabilities")
        add_black_box_flags(group)

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        finish_sources(args, args.black_box)
        if args.black_box and args.targets == "features":
            raise UserError("--black_box: features would look into the teachers; leave it out, or --black_box")

    def pictures(self) -> dict[str, Grid]:
        """A row of each source, once they are drawn."""
        if not len(self.images):
            return {}
        shown = torch.linspace(0, self.count - 1, 16 * len(self.args.sources)).long()
        together = [name for name in dict.fromkeys(self.args.sources) for _ in range(self.args.sources.count(name))]
        return {"images": Grid(self.images[shown], 16, together)}

    def summary(self) -> dict[str, Any]:
        marks = [NOT_DATA_FREE[name] for name in dict.fromkeys(self.args.sources) if name in NOT_DATA_FREE]
        summary: dict[str, Any] = {"examined": ", ".join(marks)}
        if self.args.black_box:
            everybody, asked = range(len(self.teachers)), self.per_image * self.count
            calls = sum(calls_for(self.teachers, teacher_id, asked) for teacher_id in everybody)
            once = replace(self.meter, queries=len(everybody) * asked, calls=calls)
            summary["asked_of_services"] = once.report(self.count, self.args.price_per_1000, bool(self.teachers.servers))
        return summary
