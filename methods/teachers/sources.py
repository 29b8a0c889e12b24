"""Images that nobody took of the teachers' classes: what `--sources` names, drawn in equal parts."""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from datasets.own import get_domains
from datasets.split import load_split
from methods.inversion.by_generator import Descent, fresh, invert_one
from methods.inversion.by_pixel import PRIORS, invert_pixels
from methods.inversion.natural import natural_images, photo_crops
from methods.inversion.procedural import procedural_images
from methods.inversion.pseudo_batch import labels_of
from methods.inversion.terms import add_term_flags, inversion_loss, weights_of
from methods.metalearners.learner import LearnerSpec
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from utils import cli, distributed, seed
from utils.errors import UserError
from utils.images import fitting_count, resize, to_uint8
from utils.kept import Kept
from utils.progress import Progress

Drawer = Callable[[int, int, torch.device], Tensor]  # how many, their side, where -> images in [0, 1]

DRAWN: dict[str, Drawer] = {"natural": natural_images, "procedural": procedural_images, "photos": photo_crops}  # ask nobody
INVERTED = ("pixel", "generator")  # look into teachers
SOURCES = (*DRAWN, *INVERTED, "real")
NOT_DATA_FREE = {"real": "distilled on real images", "photos": "distilled on crops of two photographs"}
AT_ONCE = 1000  # images of up to 84 pixels that are drawn together
GENERATOR_LR, LATENT_LR = 5e-3, 1e-2


def at_once(size: int) -> int:
    """How many images of a size are drawn together: what is drawn on the way is many times as large."""
    return fitting_count(AT_ONCE, size)


class Sources:
    """Draws uint8 images of a learner's size; the same for the same seed. What is inverted is kept below `kept`."""

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec, kept: Kept) -> None:
        self.args, self.teachers, self.spec, self.kept = args, teachers, spec, kept
        self.weights = weights_of(args, without=("adv",))

    def draw(self, images: Tensor) -> None:
        """Fill uint8 images (M, 3, S, S), one source after another; one that is named twice has two shares."""
        shares: Counter[str] = Counter()
        for name, part in zip(self.args.sources, torch.arange(len(images)).tensor_split(len(self.args.sources)), strict=True):
            shares[name] += len(part)
        for name, some in zip(shares, images.split(list(shares.values())), strict=True):
            self._fill(name, some)

    def _fill(self, source: str, images: Tensor) -> None:
        if source in DRAWN:
            with seed.kept(self._seed(source)):
                for part in images.split(at_once(self.spec.image_size)):
                    part.copy_(to_uint8(DRAWN[source](len(part), self.spec.image_size, self.teachers.device)))
        else:
            images.copy_(self._real(len(images)) if source == "real" else self._inverted(source, len(images)))

    def _real(self, count: int) -> Tensor:
        """Images of meta_train, at random."""
        args, size = self.args, self.spec.image_size
        splits = [
            load_split(domain, "meta_train", args.data_root, size) for domain in get_domains(args.dataset, args.data_root)
        ]
        images = torch.cat([split.images for split in splits])
        chosen = torch.randint(len(images), (count,), generator=seed.generator(args.seed, "chorus", "real"))
        return images[chosen].to(self.teachers.device)

    def _inverted(self, source: str, count: int) -> Tensor:
        """Pseudo-images, as many of each teacher as of any other."""
        args, spec, parts = self.args, self.spec, []
        shares = [len(part) for part in torch.arange(count).tensor_split(len(self.teachers))]
        flags = [source, spec.image_size, spec.mean, spec.std, args.inversion_steps, args.Glr, self.weights, args.start]
        flags += [vars(self.teachers.augmentation)] if source == "generator" else []
        mine = [(teacher_id, share) for teacher_id, share in enumerate(shares) if share][distributed.share()]
        for teacher_id, share in Progress(mine, desc=f"{source} inversion", unit="teacher", leave=False):
            key = [self.teachers.fingerprint_of(teacher_id), share, flags]
            work = partial(self._invert, source, teacher_id, share)
            parts.append(self.kept(".recovered", key, self._seed(f"{source}/{teacher_id}"), work).to(self.teachers.device))
        return torch.cat(distributed.gathered(parts))

    def _invert(self, source: str, teacher_id: int, count: int) -> Tensor:
        """Of one teacher, as many of each class as of any other."""
        args, spec, teacher = self.args, self.spec, self.teachers[teacher_id]
        per_class = -(-count // teacher.way)
        if source == "pixel":
            form, many = spec.form, teacher.way * per_class
            start = (
                form.noise(many, self.teachers.device)
                if args.start == "noise"
                else form.from_images(DRAWN[args.start](many, form.size, self.teachers.device))
            )
            images = invert_pixels(teacher, start, form, self.weights, args.inversion_steps, args.Glr).images
        else:
            descent, generator = Descent(args.inversion_steps, GENERATOR_LR, LATENT_LR), fresh(self.teachers.device)(teacher)
            labels = labels_of(teacher, per_class)
            images = invert_one(teacher, labels, generator, self._loss, descent).batch.images
        chosen = torch.linspace(0, len(images) - 1, count).long()  # of every class
        return to_uint8(resize(images[chosen], spec.image_size))

    def _loss(self, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        return inversion_loss(self.weights, teacher, self.teachers.augmentation(images), labels)

    def _seed(self, name: str) -> int:
        return seed.generator(self.args.seed, "chorus", name).initial_seed()


def add_source_flags(group: argparse._ArgumentGroup) -> None:
    """What `Sources` reads."""
    group.add_argument("--num_images", type=cli.count, default=30_000, help="images that the teachers are asked about")
    group.add_argument(
        "--sources", nargs="+", choices=SOURCES, default=None,
        help="where the images come from, in equal parts; a name may stand twice (default: natural natural procedural pixel; "
        "with --black_box without pixel); photos, crops of scikit-learn's two photographs, and real, the images of meta_train "
        "without labels, are there to compare with",
    )  # fmt: skip
    group.add_argument(
        "--start",
        choices=("natural", "procedural", "noise"),
        default="natural",
        help="what pixels are before they are inverted",
    )
    group.add_argument("--inversion_steps", type=cli.count, default=40, help="steps of inverting a teacher")
    group.add_argument("--Glr", type=cli.rate, default=0.25, help="rate of the pixels (Adam)")
    add_term_flags(group, without=("adv",), **PRIORS | {"tv": 0.01, "bn": 0.5})


def finish_sources(args: argparse.Namespace, black_box: bool) -> None:
    """Fill the default of --sources; raise `UserError` for sources that cannot be had."""
    if args.sources is None:
        args.sources = ["natural", "natural", "procedural"] + ([] if black_box else ["pixel"])
    inside = [name for name in args.sources if name in INVERTED]
    if black_box and inside:
        raise UserError(f"--black_box: {', '.join(inside)} would look into the teachers; leave it out, or --black_box")
    if "real" in args.sources and args.dataset is None:
        raise UserError("--sources real needs --dataset, whose meta_train it takes")
