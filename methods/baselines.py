"""The yardsticks as methods of their own: a random learner, the teachers' mean, frozen teachers, and real data."""

import argparse
from typing import Any, ClassVar

import torch

from datasets.episodes import EpisodeSampler, make_episodes
from datasets.split import load_split
from methods.base import FewShotMethod
from methods.evaluation.floors import teacher_floors
from methods.teachers.manifest import TeacherRow
from utils.errors import UserError
from utils.metrics import Score


class Random(FewShotMethod):
    """A learner that was never trained, adapted to each episode: what the evaluation alone is worth."""

    NEEDS_TEACHERS = False


class Average(FewShotMethod):
    """The mean of the teachers' parameters as the learner, adapted to each episode."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        _require_like_learner(self.teachers.rows, args)
        total = {name: torch.zeros_like(value) for name, value in self.learner.params.items()}
        for teacher_id in range(len(self.teachers)):
            weights = dict(self.teachers[teacher_id].network.named_parameters())
            for name, value in total.items():
                value += weights[name] / len(self.teachers)
        with torch.no_grad():
            for name, value in self.learner.params.items():
                value.copy_(total[name])


def _require_like_learner(rows: list[TeacherRow], args: argparse.Namespace) -> None:
    for row in rows:
        if (row.arch, len(row.class_ids)) != (args.backbone, args.way_train):
            raise UserError(
                f"the mean needs teachers like the learner ({args.backbone}, {args.way_train} classes); "
                f"{row.path} is a {row.arch} of {len(row.class_ids)}"
            )


class TeacherNCM(FewShotMethod):
    """Nearest class mean in the l2-normalised penultimate features of all frozen teachers, concatenated."""

    def evaluate(self, split: str) -> dict[str, Score]:
        return {exam.spec.name: teacher_floors(self.teachers, exam)[1] for exam in self.exams[split]}


class Real(FewShotMethod):
    """The ceiling: the same learner and metalearner, meta-trained on the real meta_train images."""

    NEEDS_TEACHERS = False
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"epochs": 6000, "episode_batch": 4, "val_interval": 200}
    STATE = ("learner", "optimizer")

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        self.optimizer = torch.optim.Adam(self.learner.params.values(), lr=args.outer_lr)
        splits = [load_split(domain, "meta_train", args.data_root, self.image_size) for domain in self.domains]
        names = [f"{domain.name} meta_train" for domain in self.domains]
        self.splits = [split.to(device) for split in splits]
        self.samplers = [EpisodeSampler(split, self.train_shape, name) for split, name in zip(splits, names, strict=True)]

    @property
    def num_iterations(self) -> int:
        return self.args.epochs

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One outer update on real episodes; with several image sets they take turns."""
        turn = iteration % len(self.splits)
        with self.clock("meta-training"):
            support, query = self.samplers[turn].indices(self.args.episode_batch, torch.default_generator)
            images, device = self.splits[turn].images, self.device
            drawn = [self.learner.prepare(images[indices.to(device)]) for indices in (support, query)]
            loss, accuracy = self.outer_step(self.optimizer, make_episodes(*drawn, way=self.train_shape.way))
        return {"loss": loss, "accuracy": accuracy}
