"""The yardsticks as methods of their own: a random learner, the teachers' mean, frozen teachers, and two of real data."""

import argparse
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.optim import Adam

from datasets.episodes import EpisodeSampler, make_episodes
from datasets.own import get_domains
from datasets.registry import DatasetSpec
from datasets.split import ImageSplit, load_split
from methods.distillation.student import LearnersStudent
from methods.evaluation.exams import Exam
from methods.evaluation.floors import dealt, ensemble_score, read_out_score, teacher_distances
from methods.experiments.few_shot import FewShotMethod
from methods.metalearners import get_metalearner
from methods.metalearners.learner import LearnerSpec
from methods.metalearners.protonet import ProtoNet
from methods.services.api import NO_LIMITS
from methods.teachers.averaging import average_into
from methods.teachers.ensemble import AskedTeachers, EnsembleLearner
from methods.teachers.pool import TeacherPool
from methods.teachers.views import BLACK_BOX_VIEWS, VIEWS
from utils import cli
from utils.errors import UserError
from utils.images import Augmentation, take, to_float
from utils.metrics import Score
from utils.progress import Progress


class Random(FewShotMethod):
    """A learner that was never trained, adapted to each episode: what the evaluation alone is worth."""

    NEEDS_TEACHERS = False
    TRAINS = False


class Average(FewShotMethod):
    """The mean parameters of the teachers that have the learner's architecture, adapted to each episode.

    Heads of another shape than the learner's are left out of the mean.
    """

    TRAINS = False
    ALIGN: ClassVar[bool] = False  # bring the teachers' neurons into one order first

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        average_into(self.learner.params, args.backbone, teachers, self.ALIGN)


class OTA(Average):
    """The mean after optimal-transport alignment of the teachers' neurons, layer by layer (Singh and Jaggi, 2020)."""

    ALIGN = True


class TeacherNCM(FewShotMethod):
    """Nearest class mean in what frozen teachers make of an image, l2-normalised and concatenated; no training.

    With `--ensemble` so many teachers are concatenated, and the score is the mean over ensembles that share no teacher; the
    first of them is kept. Services cannot be kept.
    """

    TRAINS = False
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"metalearner": "ncm"}

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--ensemble", type=cli.count, help="teachers that are concatenated (default: all)")
        group.add_argument(
            "--ncm_on", choices=tuple(VIEWS), default="features", help="which output of the teachers is compared"
        )

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if not issubclass(get_metalearner(args.metalearner), ProtoNet):
            raise UserError(
                f"--metalearner {args.metalearner}: frozen teachers are not adapted; ncm and protonet read class means"
            )

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        if args.ensemble and args.ensemble > len(teachers):
            raise UserError(f"--ensemble {args.ensemble}: the pool has {len(teachers)} teachers")
        if all(row.listed is None for row in teachers.rows) and teachers.api == NO_LIMITS:
            members = dealt(len(teachers), args.ensemble or len(teachers), args.seed)[0].tolist()
            self.outcome = EnsembleLearner.of(teachers, sorted(members), args.ncm_on, spec.image_size)
        else:
            self.outcome = AskedTeachers(replace(spec, norm="fixed"), self.device)

    @classmethod
    def looks_inside(cls, args: argparse.Namespace) -> bool:
        return args.ncm_on not in BLACK_BOX_VIEWS

    def score(self, exam: Exam) -> Score:
        args, size = self.args, self.args.ensemble or len(self.teachers)
        if args.readout != ["plain"]:
            return read_out_score(self.teachers, exam, args.ncm_on, args.readout, size, args.seed)
        return ensemble_score(teacher_distances(self.teachers, exam, args.ncm_on), size, args.seed)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {"examined": f"{self.args.ensemble or len(self.teachers)} teachers, {self.args.ncm_on}"}
        if self.teachers.servers:
            found["asked_of_services"] = self.teachers.meter.report(servers=True)
        return found


class Real(FewShotMethod):
    """The ceiling: the same learner and metalearner, meta-trained on the real meta_train images."""

    NEEDS_TEACHERS = False
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"epochs": 6000, "episode_batch": 4, "val_interval": 200}
    STATE = ("outer",)

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        domains, splits = _real_images(args, spec)
        names = [f"{domain.name} meta_train" for domain in domains]
        self.splits = [split.to(self.device) for split in splits]
        self.samplers = [EpisodeSampler(split, self.shape, name) for split, name in zip(self.splits, names, strict=True)]

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One outer update on real episodes; with several image sets they take turns."""
        turn = iteration % len(self.splits)
        with self.clock("meta-training"):
            support, query = self.samplers[turn].indices(self.args.episode_batch, torch.default_generator)
            images, device = self.splits[turn].images, self.device
            drawn = [self.learner.prepare(images[indices.to(device)]) for indices in (support, query)]
            loss, accuracy = self.outer.step(make_episodes(drawn[0], drawn[1], self.shape.way))
        return {"loss": loss, "accuracy": accuracy}


class RealClassifier(FewShotMethod):
    """The other ceiling: one network that learnt to name all real meta_train classes, read by nearest class means.

    Cross entropy on shifted and mirrored images, ordinary batch normalisation, Adam with a one-cycle rate; of several image
    sets, the classes of all of them are told apart.
    """

    NEEDS_TEACHERS = False
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"epochs": 60, "val_interval": 10, "metalearner": "ncm"}
    STATE = ("student",)

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--lr", type=cli.rate, default=0.01, help="peak rate of the one-cycle schedule (Adam)")
        group.add_argument("--batch_size", type=cli.count, default=128, help="images of an update")

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        domains, splits = _real_images(args, spec)
        super().__init__(args, teachers, replace(spec, way=sum(len(split.class_names) for split in splits), norm="fixed"))
        firsts = torch.tensor([0, *[len(split.class_names) for split in splits[:-1]]]).cumsum(0).tolist()
        self.images = torch.cat([split.images for split in splits]).to(self.device)
        self.labels = torch.cat([first + split.labels for first, split in zip(firsts, splits, strict=True)]).to(self.device)
        self.batch_size = min(args.batch_size, len(self.images))
        self.augmentation = Augmentation(all(one.flip for one in domains), all(one.recolour for one in domains))
        updates = args.epochs * (len(self.images) // self.batch_size)
        self.student = LearnersStudent(self.learner, args.lr, updates, Adam)

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One pass over the images."""
        size, total, right = self.batch_size, torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        batches = torch.randperm(len(self.images))[: len(self.images) // size * size].view(-1, size)
        with self.clock("training"):
            for chosen in Progress(batches.to(self.device), desc="epoch", unit="batch", leave=False):
                images, labels = self.augmentation(to_float(take(self.images, chosen))), self.labels[chosen]
                loss, outputs = self.student.update(images, labels, F.cross_entropy)
                self.student.schedule.step()
                total, right = total + loss, right + (outputs.argmax(1) == labels).sum()
        self.student.teach()
        return {"loss": float(total) / len(batches), "train_accuracy": float(right) / batches.numel()}


def _real_images(args: argparse.Namespace, spec: LearnerSpec) -> tuple[list[DatasetSpec], list[ImageSplit]]:
    """The image sets of --dataset, and their meta_train splits at the learner's size."""
    if args.dataset is None:
        raise UserError(f"--method {args.method} learns from real images: name their set by --dataset")
    domains = get_domains(args.dataset, args.data_root)
    return domains, [load_split(domain, "meta_train", args.data_root, spec.image_size) for domain in domains]
