"""Chorus: one small learner that has heard all teachers. This project's own method; docs/chorus.md tells it with figures.

Frozen teachers, put side by side, tell new classes apart far better than one of them, and better than what is
meta-learned from their pseudo-images. What they know together is distilled into one learner:

1. Images are made that ask the teachers something: inverted from each teacher pixel by pixel, and drawn by simple random
   processes that need no teacher (`--sources`).
2. Every teacher is asked once about every image and its mirror image. The target of an image is what all say, side by
   side: each teacher's centred log-probabilities, scaled to length 1 (`--targets answers`; probabilities suffice, a
   black box will do).
3. The learner regresses the targets: one output for each class of each teacher, `--epochs` passes.
4. New classes are told apart by the nearest class mean of its outputs, scaled to length 1 (`--metalearner ncm`).

No labels, no episodes and no adversary are used. `--black_box` uses nothing of the teachers but one answer to each image
of the second kind; `--query_budget` then limits the images.
"""

import argparse
import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.registry import get_domains
from datasets.split import load_split
from methods.distillation.divergences import regression, relational
from methods.distillation.student import LearnersStudent, Loss
from methods.experiments.few_shot import FewShotMethod
from methods.inversion.by_generator import Descent, fresh, invert_each
from methods.inversion.by_pixel import PRIORS, PixelForm, invert_pixels
from methods.inversion.procedural import procedural_images
from methods.inversion.terms import add_term_flags, inversion_loss, weights_of
from methods.metalearners.learner import LearnerSpec
from methods.services.black_box import Meter, add_black_box_flags
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from methods.teachers.views import SHOWN_AT_ONCE, view_of
from utils import cli, seed
from utils.errors import UserError
from utils.images import resize, to_uint8
from utils.kept import Kept

FEATURES_KEPT = 512  # numbers that a random projection leaves of all teachers' features
LOSSES: dict[str, Loss] = {"regression": regression, "relational": relational}
TARGETS = ("answers", "features")
SOURCES = ("pixel", "generator", "procedural", "real")
INVERTED = ("pixel", "generator")  # the sources that look into teachers
GENERATOR_LR, LATENT_LR = 5e-3, 1e-2


class Chorus(FewShotMethod):
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"epochs": 20, "val_interval": 5, "metalearner": "ncm"}
    STATE = ("student",)

    @classmethod
    def looks_inside(cls, args: argparse.Namespace) -> bool:
        return not args.black_box

    def prepare(self, folder: Path) -> str:
        """Draw the images, and ask the teachers about them; both are kept in the folder of runs for the next time."""
        sources, resumed = self.args.sources, "generation" in self.clock.seconds
        with self.clock("generation"):
            shares = [len(part) for part in torch.arange(self.count).tensor_split(len(sources))]
            images = torch.cat([self.draw(source, share) for source, share in zip(sources, shares, strict=True)])
            self.images = torch.cat([images, images.flip(-1)]) if self.views == 2 else images
        with self.clock("asking"):
            self.targets = self.ask(self.images)
        if self.kept.seconds and not resumed:
            self.clock.seconds["made by an earlier run"] = self.kept.seconds
        return f"{len(self.images)} images of {', '.join(sources)}; targets of {self.targets.shape[1]} numbers"

    def draw(self, source: str, count: int) -> Tensor:
        """uint8 images (count, 3, S, S) of a source; the same for the same seed."""
        args, size = self.args, self.spec.image_size
        if source == "procedural":
            with seed.kept(self.seed_of(source)):
                return to_uint8(procedural_images(count, size, self.device))
        if source == "real":
            splits = [load_split(domain, "meta_train", args.data_root, size) for domain in get_domains(args.dataset)]
            images = torch.cat([split.images for split in splits])
            chosen = torch.randint(len(images), (count,), generator=seed.generator(args.seed, "chorus", "real"))
            return images[chosen].to(self.device)
        shares = [len(part) for part in torch.arange(count).tensor_split(len(self.teachers))]
        flags = [source, size, self.spec.mean, self.spec.std, args.inversion_steps, args.Glr, self.weights, args.start]
        parts = []
        for teacher_id, share in enumerate(tqdm(shares, desc=f"{source} inversion", unit="teacher", leave=False)):
            key = [self.teachers.fingerprint_of(teacher_id), share, flags]
            number, work = self.seed_of(f"{source}/{teacher_id}"), partial(self.invert, source, teacher_id, share)
            parts.append(self.kept(".recovered", key, number, work).to(self.device))
        return torch.cat(parts)

    def invert(self, source: str, teacher_id: int, count: int) -> Tensor:
        """uint8 pseudo-images (count, 3, S, S) of one teacher, as many of each class as of any other."""
        args, teacher, spec = self.args, self.teachers[teacher_id], self.spec
        per_class = -(-count // teacher.way)
        if source == "pixel":
            form, many = PixelForm(spec.image_size, spec.mean, spec.std), teacher.way * per_class
            procedural = args.start == "procedural"
            start = (
                form.from_images(procedural_images(many, form.size, self.device))
                if procedural
                else form.noise(many, self.device)
            )
            images = invert_pixels(teacher, start, form, self.weights, args.inversion_steps, args.Glr).images
        else:
            descent = Descent(args.inversion_steps, GENERATOR_LR, LATENT_LR)
            images = invert_each([teacher], per_class, fresh(self.device), self.generator_loss, descent)[0].batch.images
        chosen = torch.linspace(0, len(images) - 1, count).long()  # of every class
        return to_uint8(resize(images[chosen], spec.image_size))

    def generator_loss(self, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        weights = {"ce": self.weights["ce"], "bn": self.weights["bn"]}
        return inversion_loss(weights, teacher, self.teachers.augmentation(images), labels)

    def ask(self, images: Tensor) -> Tensor:
        """The targets (M, D) of uint8 images (M, C, S, S), in half precision; services are asked only once, ever."""
        args, meter = self.args, Meter(watch=self.clock)

        def compute() -> Tensor:
            everybody = tqdm(range(len(self.teachers)), desc="asking", unit="teacher", leave=False)
            views = [view_of(self.teachers, one, args.targets, images, meter, args.api_dtype) for one in everybody]
            return self.projected(torch.cat(views, 1)).half()

        digest = hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()
        key = [digest, self.teachers.fingerprint(), args.targets, args.api_dtype]
        return self.kept(".asked", key, args.seed, compute).to(self.device)

    def projected(self, views: Tensor) -> Tensor:
        """Features through a random projection that keeps lengths on average; answers as they are."""
        if self.args.targets != "features":
            return views
        draws = seed.generator(self.args.seed, "chorus", "projection")
        return views @ (torch.randn(views.shape[1], FEATURES_KEPT, generator=draws) / FEATURES_KEPT**0.5).to(views)

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One pass of regression over the images."""
        with self.clock("distillation"):
            loss = self.student.epoch(self.images, self.targets, LOSSES[self.args.loss], self.args.batch_size)
        self.student.teach()
        return {"loss": loss}

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        """The learner has as many outputs as there are targets, and no statistics of the batch at hand."""
        outputs = FEATURES_KEPT if args.targets == "features" else sum(len(row.class_ids) for row in teachers.rows)
        super().__init__(args, teachers, replace(spec, way=outputs, norm="fixed"))
        self.weights = weights_of(args, without=("adv",))
        self.count = args.num_images
        self.views = 2 if args.mirror and teachers.augmentation.flip else 1  # of each image
        if args.query_budget is not None:
            self.count = min(self.count, args.query_budget // (self.views * len(teachers)))
        if self.count < args.batch_size:
            raise UserError(
                f"{self.count} images (--num_images {args.num_images}, --query_budget {args.query_budget}) do not fill a "
                f"batch of {args.batch_size}: raise them or lower --batch_size"
            )
        self.student = LearnersStudent(self.learner, args.lr, args.epochs * (self.views * self.count // args.batch_size))
        self.kept = Kept(args.out)
        asked, size, device = self.views * self.count, spec.image_size, self.device
        self.images = torch.zeros(asked, 3, size, size, dtype=torch.uint8, device=device)  # until `prepare` draws them
        self.targets = torch.zeros(asked, outputs, dtype=torch.float16, device=device)

    def seed_of(self, name: str) -> int:
        return seed.generator(self.args.seed, "chorus", name).initial_seed()

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--num_images", type=cli.count, default=60_000, help="images that the teachers are asked about")
        group.add_argument(
            "--sources", nargs="+", choices=SOURCES, default=None,
            help="where they come from, in equal parts (default: pixel procedural; with --black_box procedural); "
            "real, the images of meta_train without labels, is there to compare with",
        )  # fmt: skip
        group.add_argument("--no_mirror", dest="mirror", action="store_false", help="do not ask about mirror images too")
        group.add_argument("--targets", choices=TARGETS, default="answers", help="what the learner regresses")
        group.add_argument("--loss", choices=tuple(LOSSES), default="regression", help="how")
        group.add_argument("--lr", type=cli.rate, default=0.01, help="peak rate of the one-cycle schedule (Adam)")
        group.add_argument("--batch_size", type=cli.count, default=128, help="images of an update")
        group.add_argument(
            "--start", choices=("procedural", "noise"), default="procedural", help="what pixels are before they are inverted"
        )
        group.add_argument("--inversion_steps", type=cli.count, default=40, help="steps of inverting a teacher")
        group.add_argument("--Glr", type=cli.rate, default=0.25, help="rate of the pixels (Adam)")
        add_term_flags(group, without=("adv",), **PRIORS | {"tv": 0.01, "bn": 0.5})
        group.add_argument("--black_box", action="store_true", help="use nothing of the teachers but their probabilities")
        add_black_box_flags(group)

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.sources is None:
            args.sources = ["procedural"] if args.black_box else ["pixel", "procedural"]
        inside = [name for name in args.sources if name in INVERTED] + (["features"] if args.targets == "features" else [])
        if args.black_box and inside:
            raise UserError(f"--black_box: {', '.join(inside)} would look into the teachers; leave it out, or --black_box")
        if "real" in args.sources and args.dataset is None:
            raise UserError("--sources real needs --dataset, whose meta_train it takes")

    def pictures(self) -> dict[str, tuple[Tensor, int]]:
        """A row of each source."""
        shown = torch.linspace(0, len(self.images) - 1, 16 * len(self.args.sources)).long()
        return {"images": (self.images[shown], 16)}

    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = {"examined": "distilled on real images" if "real" in self.args.sources else ""}
        if self.args.black_box:
            teachers, asked = len(self.teachers), self.views * self.count
            calls = teachers * -(-asked // SHOWN_AT_ONCE)
            each = teachers * self.views
            summary["asked_of_services"] = {"queries": teachers * asked, "calls": calls, "queries_per_image": each}
        return summary
