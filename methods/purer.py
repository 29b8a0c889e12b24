"""PURER: Architecture, Dataset and Model-Scale Agnostic Data-free Meta-Learning (Hu et al., CVPR 2023), and PURER-Plus.

Episode curriculum inversion: the pixels of every class are parameters. Each outer update takes one step on them towards
what the teachers know, draws episodes of them, and meta-trains on those. When the learner no longer gets better at them,
the gradient switch turns the next step against it: the images are also made harder for the learner.

`--candidate_size N` selects PURER-Plus, whose teachers have overlapping classes: N of them are drawn for each update, and
the curriculum is on unless `--no_adv` says otherwise. Without it the teachers have disjoint classes and all of them are
used at each update. `--icfil` adds the paper's second half, calibration at test time (`methods.metalearners.icfil`).

Deviations
----------
From the released code:
- Each teacher's loss counts once. The code sums a running total, so the first of thirteen teachers counts thirteen times:
  inversion is seven times heavier beside `--adv_scale` there, so the curriculum acts seven times harder here.
- PURER-Plus there pairs a teacher's outputs with its images in the order of the pool's classes, not of the teacher's;
  here class ids and images are matched.
- Pixels are clipped to the range of an image after each step; `--no_clamp` leaves them free, as in the code.
- An episode draws its images of a class at random; PURER-Plus's code always takes the first ones as support.
- PURER-Plus's code draws four sets of candidate teachers an update and uses the first; its head's bias starts at 0.
- `--average` takes the mean. For conv4 the code, which registers each block twice, gets (w0 + 2 sum of the others) / n; heads
  that have the learner's width are averaged, the code averages a remainder's wider head, too.
- The outer loss is the mean over episodes, not the sum: they differ by Adam's eps alone.
- With several image sets the learner's images have one size, 84, and one normalisation; the code tests each set at its own.
Our own:
- `--augment` augments pseudo-images in meta-training, as for FREE: the same few pixels come back at every update.
"""

import argparse
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from datasets.episodes import Episodes, draw_slots
from methods.evaluation.exams import Exam, examine
from methods.experiments.few_shot import FewShotMethod
from methods.experiments.few_shot_flags import add_augment_flag
from methods.experiments.settings import TYPED, Setting
from methods.inversion.by_generator import add_together_flag, together_of
from methods.inversion.by_pixel import PRIORS, PixelImages
from methods.inversion.pseudo_batch import PseudoBatch
from methods.inversion.terms import add_term_flags, inversion_loss, weights_of
from methods.memory.bank import pseudo_episodes
from methods.metalearners.icfil import ICFIL, add_icfil_flags, icfil_settings
from methods.metalearners.learner import LearnerSpec
from methods.teachers.averaging import average_into
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models import MIXED_ARCHITECTURES
from utils import cli
from utils.errors import UserError
from utils.images import Grid, to_uint8
from utils.metrics import Patience, Score


class PURER(FewShotMethod):
    PAPER = "Hu et al., Architecture, Dataset and Model-Scale Agnostic Data-free Meta-Learning (PURER), CVPR 2023"
    COUNTS_EPISODES = True
    TEACHER_EPOCHS = 60
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {
        "episode_train": 240_000,
        "episode_batch": 4,
        "val_interval": 2_000,
        "inner_steps": 1,
        "test_inner_steps": 1,
        "adv": True,
    }
    SETTINGS = (  # of PURER-Plus
        Setting(
            {"candidate_size": TYPED},
            {"Glr": 1e-2, "average": False, "metalearner": "protonet", "inner_steps": 5, "test_inner_steps": 10},
        ),
    )
    QUICK: ClassVar[dict[str, Any]] = {
        "episode_train": 3_200, "val_interval": 800, "Glr": 0.25, "bn": 0.1, "tv": 0.01, "metalearner": "protonet",
        "inner_steps": 5, "test_inner_steps": 10, "adv": False, "average": False, "augment": True,
    }  # fmt: skip
    STATE = ("outer", "pixels", "switch")

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One outer update: ECI moves the pixels, then the learner meets episodes of them."""
        args, pixels = self.args, self.pixels
        with self.clock("generation"):
            sampled = self.teachers.sample(args.candidate_size or len(self.teachers))
            teachers = [teacher.unmasked for teacher in sampled]  # a spare output counts in the cross entropy, too
            gradient, inverted = pixels.gradient(teachers, self.loss, self.together)
            harder = self.switch.on  # for the learner
            if harder:
                gradient -= args.adv_scale * torch.autograd.grad(self.outer.loss(self.draw(1)), pixels.values)[0]
            pixels.step(gradient)
        with self.clock("meta-training"):
            with torch.no_grad():
                episodes = self.draw(args.episode_batch)
            loss, accuracy = self.outer.step(episodes)
        self.switch.note(iteration + 1, accuracy)
        return {"inversion_loss": inverted, "loss": loss, "accuracy": accuracy, "harder": float(harder)}

    def loss(self, teacher: Teacher, pixels: Tensor, labels: Tensor) -> Tensor:
        """CE(t(x), y) + tv * TV(x) + l2 * ||x|| + bn * BN of the jittered pixels x of one teacher's classes."""
        images = self.pixels.form.to_images(pixels)
        return inversion_loss(self.weights, teacher, images, labels, pixels=pixels)

    def draw(self, count: int) -> Episodes:
        """Episodes of the present pixels; gradients reach them."""
        per_class = self.args.synthesis_per_class
        classes, slots = draw_slots(torch.full((len(self.pixels.values),), per_class), self.shape, count)
        places = (classes[..., None] * per_class + slots).to(self.device)  # (E, N, K + Q)
        augment = self.teachers.augmentation if self.args.augment else None
        return pseudo_episodes(self.pixels.unit.flatten(0, 1), places, self.shape, self.learner, augment)

    def score(self, exam: Exam) -> Score:
        """On meta_test, with `--icfil`, the learner is calibrated in each episode; validation on meta_val goes without."""
        if not (self.args.icfil and exam.split_name == "meta_test"):
            return super().score(exam)
        return examine(self.learner, ICFIL(self.metalearner, icfil_settings(self.args)), exam, self.args.test_inner_steps)

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        if args.average:
            average_into(self.learner.params, args.backbone, teachers)
        classes = len(teachers.class_names)
        if classes < args.way_train:
            raise UserError(f"the teachers know {classes} classes, an episode needs {args.way_train}: lower --way_train")
        self.weights = weights_of(args, without=("adv",))
        self.pixels = PixelImages(classes, args.synthesis_per_class, spec.form, args.Glr, self.device, not args.no_clamp)
        self.together = together_of(args, self.device)
        self.switch = GradientSwitch(args.adv, args.adv_start, fires_at_start=args.candidate_size is None)

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--candidate_size",
            type=cli.count,
            help="PURER-Plus: teachers drawn for each update (default: all, of disjoint classes)",
        )
        group.add_argument("--Glr", type=cli.rate, default=0.25, help="Adam's rate on the pixels (PURER-Plus: 0.01)")
        group.add_argument("--synthesis_per_class", type=cli.count, help="images of a class (default: shot + query)")
        add_term_flags(group, without=("adv",), **PRIORS)
        group.add_argument("--no_clamp", action="store_true", help="let pixels leave the range of an image")
        group.add_argument("--adv", action="store_true", help="the curriculum (default)")
        group.add_argument("--no_adv", dest="adv", action="store_false", help="no curriculum")
        group.add_argument("--adv_scale", type=cli.weight, default=10.0, help="weight of the learner's loss")
        group.add_argument("--adv_start", type=cli.whole(-1), default=4_000, help="update from which the switch may fire")
        group.add_argument(
            "--average", action="store_true", default=None,
            help="start from the mean of the teachers' parameters (default: where they are trained for the learner's network; "
            "PURER-Plus: off)",
        )  # fmt: skip
        group.add_argument("--no_average", dest="average", action="store_false", help="start from random numbers")
        add_together_flag(group)
        add_augment_flag(group)
        add_icfil_flags(group)
        cli.without_effect(group, "--inversionMethod", reason="PURER inverts pixels; there is no other way to choose")
        for name in ("generate_interval", "generate_iterations"):
            cli.without_effect(group, f"--{name}", reason="PURER inverts one step at every update")

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.average is None:
            trained = MIXED_ARCHITECTURES if args.pre_backbone == "mix" else (args.pre_backbone,)
            args.average = not args.teachers and args.backbone in trained
        needed = args.shot_train + args.query_train
        if args.synthesis_per_class is None:
            args.synthesis_per_class = needed
        if args.synthesis_per_class < needed:
            raise UserError(
                f"--synthesis_per_class {args.synthesis_per_class}: an episode needs {args.shot_train} shots + "
                f"{args.query_train} queries = {needed} images of a class"
            )
        if args.candidate_size is None and not args.num_class_per_task:
            args.num_class_per_task = args.way_train  # the pool of disjoint groups

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        return [self.pixels.batch_of(self.teachers[teacher_id]) for teacher_id in teacher_ids]

    def pictures(self) -> dict[str, Grid]:
        """The present images of up to 16 classes, one class a row."""
        columns = min(8, self.args.synthesis_per_class)
        images = to_uint8(self.pixels.unit[:16, :columns]).flatten(0, 1)
        return {"pixels": Grid(images, columns, self.teachers.class_names[:16])}

    def summary(self) -> dict[str, Any]:
        args = self.args
        share = min(1.0, (args.candidate_size or len(self.teachers)) / len(self.teachers))
        steps = round(share * max(1, args.episode_train // args.episode_batch))
        return {
            "inversion_of_one_teacher": {"images": args.way_train * args.synthesis_per_class, "steps": steps},
            "examined": "calibrated by ICFIL" if args.icfil else "",
        }


class GradientSwitch:
    """Whether the next step makes the images harder.

    It fires once after update `start` (where `fires_at_start`), then each time `patience` updates brought no better
    accuracy; the best is forgotten after each firing.
    """

    def __init__(self, enabled: bool, start: int, fires_at_start: bool, patience: int = 6) -> None:
        self.enabled, self.start, self.fires_at_start = enabled, start, fires_at_start
        self.patience = Patience(patience)
        self.on = False

    def note(self, update: int, accuracy: float) -> None:
        """Take in the accuracy of an update, counted from 1, and set `on` for the next one."""
        if not self.enabled:
            return
        self.on = self.patience.note(accuracy) if update > self.start else self.fires_at_start and update == self.start

    def state_dict(self) -> dict[str, Any]:
        return {"on": self.on, "patience": self.patience.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.on = state["on"]
        self.patience.load_state_dict(state["patience"])
