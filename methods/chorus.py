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
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.split import load_split
from methods.distillation.losses import regression, relational
from methods.distillation.student import LearnersStudent, Loss
from methods.few_shot import FewShotMethod
from methods.inversion.generator import FreshGenerator, InversionWeights, Settings, inversion_loss
from methods.inversion.pixel import PixelWeights, invert_alone
from methods.inversion.procedural import procedural_images
from methods.inversion.subjects import PseudoBatch
from methods.metalearners.learner import LearnerSpec
from methods.teachers.black_box import Meter, add_black_box_flags
from methods.teachers.views import SHOWN_AT_ONCE, seen
from utils import checkpoint, cli, seed
from utils.errors import UserError
from utils.images import resize, to_uint8

FEATURES_KEPT = 512  # numbers that a random projection leaves of all teachers' features
LOSSES: dict[str, Loss] = {"regression": regression, "relational": relational}
TARGETS = ("answers", "features")
SOURCES = ("pixel", "generator", "procedural", "real")
INVERTED = ("pixel", "generator")  # the sources that look into teachers
GENERATOR_LR, LATENT_LR = 5e-3, 1e-2


class Chorus(FewShotMethod):
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"epochs": 20, "val_interval": 5, "metalearner": "ncm"}
    STATE = ("student",)

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
        group.add_argument("--tv", type=float, default=0.01, help="weight of the pixels' total variation")
        group.add_argument("--bn", type=float, default=0.5, help="weight of the batch statistics")
        group.add_argument("--black_box", action="store_true", help="use nothing of the teachers but their probabilities")
        add_black_box_flags(group)

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        super().finish_args(args)
        if args.sources is None:
            args.sources = ["procedural"] if args.black_box else ["pixel", "procedural"]
        inside = [name for name in args.sources if name in INVERTED] + (["features"] if args.targets == "features" else [])
        if args.black_box and inside:
            raise UserError(f"--black_box: {', '.join(inside)} would look into the teachers; leave it out, or --black_box")
        if "real" in args.sources and args.dataset is None:
            raise UserError("--sources real needs --dataset, whose meta_train it takes")

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        self.count = args.num_images
        self.looks = 2 if args.mirror and self.augmentation.flip else 1  # at each image
        if args.query_budget is not None:
            self.count = min(self.count, args.query_budget // (self.looks * len(self.teachers)))
        if self.count < args.batch_size:
            raise UserError(
                f"{self.count} images (--num_images {args.num_images}, --query_budget {args.query_budget}) do not fill a "
                f"batch of {args.batch_size}: raise them or lower --batch_size"
            )
        asked = self.looks * self.count
        self.student = LearnersStudent(self.learner, args.lr, args.epochs * (asked // args.batch_size))
        self.kept = 0.0  # seconds of work that an earlier run has done
        size, outputs = self.image_size, self.learner.spec.way
        self.images = torch.zeros(asked, 3, size, size, dtype=torch.uint8, device=device)  # until `prepare` has made them
        self.targets = torch.zeros(asked, outputs, dtype=torch.float16, device=device)

    def shape_learner(self, spec: LearnerSpec) -> LearnerSpec:
        """As many outputs as targets, and no statistics of the batch at hand: an image is embedded by itself."""
        outputs = FEATURES_KEPT if self.args.targets == "features" else sum(len(row.class_ids) for row in self.teachers.rows)
        return replace(spec, way=outputs, norm="fixed")

    @property
    def looks_inside(self) -> bool:
        return not self.args.black_box

    def prepare(self, folder: Path) -> str:
        """Make the images and ask the teachers about them; both are kept in the folder of runs for the next time."""
        resumed = "generation" in self.clock.seconds
        with self.clock("generation"):
            shares = [len(part) for part in torch.arange(self.count).tensor_split(len(self.args.sources))]
            drawn = [self.draw(source, share) for source, share in zip(self.args.sources, shares, strict=True)]
            images = torch.cat(drawn)
            self.images = torch.cat([images, images.flip(-1)]) if self.looks == 2 else images
        with self.clock("asking"):
            self.targets = self.ask(self.images)
        if self.kept and not resumed:
            self.clock.seconds["made by an earlier run"] = self.kept
        return f"{len(self.images)} images of {', '.join(self.args.sources)}; targets of {self.targets.shape[1]} numbers"

    def draw(self, source: str, count: int) -> Tensor:
        """uint8 images (count, 3, S, S) of a source; the same for the same seed."""
        if source == "procedural":
            return self.seeded(source, lambda: to_uint8(procedural_images(count, self.image_size, self.device)))
        if source == "real":
            splits = [load_split(domain, "meta_train", self.args.data_root, self.image_size) for domain in self.domains]
            images = torch.cat([split.images for split in splits])
            chosen = torch.randint(len(images), (count,), generator=seed.generator(self.args.seed, "chorus", "real"))
            return images[chosen].to(self.device)
        args, pool = self.args, self.teachers
        shares = [len(part) for part in torch.arange(count).tensor_split(len(pool))]
        parts = []
        for teacher_id, share in enumerate(tqdm(shares, desc=f"{source} inversion", unit="teacher", leave=False)):
            settings = [source, share, self.image_size, args.inversion_steps, args.Glr, args.tv, args.bn, args.start, args.seed]
            key = [pool.fingerprint_of(teacher_id), self.learner.spec.mean, self.learner.spec.std, settings]
            parts.append(self.once(".recovered", key, partial(self.invert, source, teacher_id, share)))
        return torch.cat(parts)

    def invert(self, source: str, teacher_id: int, count: int) -> Tensor:
        """uint8 pseudo-images (count, 3, S, S) of one teacher."""
        args, teacher, spec = self.args, self.teachers[teacher_id], self.learner.spec
        per_class = -(-count // teacher.way)

        def run() -> PseudoBatch:
            if source == "pixel":
                size, device = self.image_size, self.device
                start = procedural_images(teacher.way * per_class, size, device) if args.start == "procedural" else None
                weights, form = PixelWeights(args.tv, args.bn), (spec.mean, spec.std)
                return invert_alone(teacher, per_class, size, form, args.inversion_steps, args.Glr, weights, device, start)
            loss = partial(inversion_loss, weights=InversionWeights(1.0, args.bn, 0.0), augment=self.augmentation)
            inverter = FreshGenerator(self.device, loss, Settings(args.inversion_steps, GENERATOR_LR, LATENT_LR))
            return inverter.invert([teacher], per_class)[0][0]

        images = self.seeded(f"{source}/{teacher_id}", run).images
        chosen = torch.linspace(0, len(images) - 1, count).long()  # of every class
        return to_uint8(resize(images[chosen], self.image_size))

    def seeded(self, name: str, work: Callable[[], Any]) -> Any:
        """`work` under a seed of its own, leaving the run's random streams as they are."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed.generator(self.args.seed, "chorus", name).initial_seed())
            return work()

    def ask(self, images: Tensor) -> Tensor:
        """The targets (M, D) of uint8 images (M, C, S, S), in half precision; services are asked only once, ever."""
        digest = hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()
        key = [digest, self.teachers.fingerprint(), self.args.targets, self.args.api_dtype, self.args.seed]

        def compute() -> Tensor:
            args, meter = self.args, Meter(watch=self.clock)
            everybody = tqdm(range(len(self.teachers)), desc="asking", unit="teacher", leave=False)
            views = [seen(self.teachers, teacher_id, args.targets, images, meter, args.api_dtype) for teacher_id in everybody]
            return self.projected(torch.cat(views, 1)).half()

        return self.once(".asked", key, compute)

    def once(self, folder: str, key: object, compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, kept among the runs; what an earlier run kept counts with the time that it took then."""
        fresh: list[float] = []

        def timed() -> dict[str, Any]:
            begin = time.perf_counter()
            value = compute()
            fresh.append(time.perf_counter() - begin)
            return {"value": value, "seconds": fresh[0]}

        content = checkpoint.cached(self.args.out / folder, key, timed)
        self.kept += 0.0 if fresh else content["seconds"]
        return content["value"].to(self.device)

    def projected(self, views: Tensor) -> Tensor:
        """Features through a random projection that keeps lengths on average; answers as they are."""
        if self.args.targets != "features":
            return views
        draws = seed.generator(self.args.seed, "chorus", "projection")
        return views @ (torch.randn(views.shape[1], FEATURES_KEPT, generator=draws) / FEATURES_KEPT**0.5).to(views)

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One pass over the images."""
        with self.clock("distillation"):
            loss = self.student.epoch(self.images, self.targets, LOSSES[self.args.loss], self.args.batch_size)
        self.student.teach()
        return {"loss": loss}

    def examined_how(self) -> str:
        return "distilled on real images" if "real" in self.args.sources else ""

    def asked(self) -> dict[str, float]:
        if not self.args.black_box:
            return {}
        teachers, asked = len(self.teachers), len(self.images)
        calls = teachers * -(-asked // SHOWN_AT_ONCE)
        return {"queries": teachers * asked, "calls": calls, "queries_per_image": teachers * self.looks}

    def pictures(self) -> dict[str, tuple[Tensor, int]]:
        """A row of each source."""
        shown = torch.linspace(0, len(self.images) - 1, 16 * len(self.args.sources)).long()
        return {"images": (self.images[shown], 16)}
