"""PURER: Architecture, Dataset and Model-Scale Agnostic Data-free Meta-Learning (Hu et al., CVPR 2023), and PURER-Plus.

Episode curriculum inversion: the pixels of every class are parameters. Each outer update takes one step on them towards
what the teachers know, draws episodes of them, and meta-trains on those. When the learner no longer gets better at them,
the gradient switch turns the next step against it: the images are also made harder for the learner.

`--candidate_size N` selects PURER-Plus, whose teachers have overlapping classes: N of them are drawn for each update, and
the curriculum is on unless `--no_adv` says otherwise. Without it the teachers have disjoint classes and all of them are
used at each update. `--icfil` adds the paper's second half, calibration at test time (`methods.evaluation.icfil`).

Deviations
----------
From the released code:
- Each teacher's loss counts once. The code sums a running total, so the first of thirteen teachers counts thirteen times.
- PURER-Plus there pairs a teacher's outputs with its images in the order of the pool's classes, not of the teacher's;
  here class ids and images are matched.
- Pixels are clipped to the range of an image after each step; `--no_clamp` leaves them free, as in the code.
- An episode draws its images of a class at random; the code always takes the first ones as support.
- The outer loss is the mean over episodes, not the sum; Adam moves alike.
Our own:
- `--augment` augments pseudo-images in meta-training, as for FREE: the same few pixels come back at every update.
"""

import argparse
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from datasets.episodes import Episodes, draw_slots
from methods.evaluation.few_shot import Exam, examine
from methods.evaluation.icfil import ICFIL, add_icfil_flags, icfil_settings
from methods.few_shot import FewShotMethod, add_augment_flag
from methods.inversion.generator import add_together_flag
from methods.inversion.pixel import PixelImages, PixelWeights
from methods.inversion.subjects import PseudoBatch
from methods.memory import pseudo_episodes
from methods.teachers.averaging import average_into
from utils import cli
from utils.errors import UserError
from utils.images import to_uint8
from utils.metrics import Patience, Score

# flag -> value of PURER, value of PURER-Plus, where none is typed
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "episode_train": (60_000, 240_000),
    "val_interval": (2_000, 800),
    "Glr": (0.25, 1e-3),
    "adv_scale": (1.0, 10.0),
    "adv_start": (1, 4_000),
}


class PURER(FewShotMethod):
    PAPER = "Hu et al., Architecture, Dataset and Model-Scale Agnostic Data-free Meta-Learning (PURER), CVPR 2023"
    COUNTS_EPISODES = True
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"episode_batch": 4, **dict.fromkeys(DEFAULTS)}
    STATE = ("learner", "optimizer", "pixels", "switch")
    EXAM_FLAGS = ("icfil", "icfil_images", "icfil_steps", "icfil_lr", "icfil_calibration", "icfil_tau")

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        def default(name: str) -> str:
            return "(default: {:g}; PURER-Plus {:g})".format(*DEFAULTS[name])

        group.add_argument(
            "--candidate_size",
            type=cli.count,
            help="PURER-Plus: teachers drawn for each update (default: all, of disjoint classes)",
        )
        group.add_argument("--Glr", type=cli.rate, help=f"Adam's rate on the pixels {default('Glr')}")
        group.add_argument(
            "--synthesis_per_class", type=cli.count, help="images of a class (default: 30; PURER-Plus: shot + query)"
        )
        group.add_argument("--tv", type=float, default=PixelWeights.tv, help="weight of the total variation")
        group.add_argument("--bn", type=float, default=PixelWeights.bn, help="weight of the batch statistics")
        group.add_argument("--l2", type=float, default=PixelWeights.l2, help="weight of the pixels' norm")
        group.add_argument("--no_clamp", action="store_true", help="let pixels leave the range of an image")
        group.add_argument("--adv", action="store_true", default=None, help="the curriculum (default: off; PURER-Plus: on)")
        group.add_argument("--no_adv", dest="adv", action="store_false", default=None, help="no curriculum for PURER-Plus")
        group.add_argument("--adv_scale", type=float, help=f"weight of the learner's loss {default('adv_scale')}")
        group.add_argument("--adv_start", type=int, help=f"update from which the switch may fire {default('adv_start')}")
        group.add_argument("--average", action="store_true", help="start from the mean of the teachers' parameters")
        add_together_flag(group)
        add_augment_flag(group)
        add_icfil_flags(group)
        for name in ("inversionMethod", "generate_interval", "generate_iterations"):
            group.add_argument(f"--{name}", help="accepted for the papers' scripts")

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        super().finish_args(args)
        plus = args.candidate_size is not None
        for name, values in DEFAULTS.items():
            if getattr(args, name) is None:
                setattr(args, name, values[plus])
        if args.adv is None:
            args.adv = plus
        needed = args.shot_train + args.query_train
        if args.synthesis_per_class is None:
            args.synthesis_per_class = needed if plus else max(30, needed)
        if args.synthesis_per_class < needed:
            raise UserError(
                f"--synthesis_per_class {args.synthesis_per_class}: an episode needs {args.shot_train} shots + "
                f"{args.query_train} queries = {needed} images of a class"
            )
        if not plus and not args.num_class_per_task:
            args.num_class_per_task = args.way_train  # the pool of disjoint groups

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        if args.average:
            average_into(self.learner.params, args.backbone, self.teachers)
        spec = self.learner.spec
        weights = PixelWeights(args.tv, args.bn, args.l2)
        classes = len(self.teachers.class_names)
        if classes < args.way_train:
            raise UserError(f"the teachers know {classes} classes, an episode needs {args.way_train}: lower --way_train")
        self.pixels = PixelImages(
            classes,
            args.synthesis_per_class,
            self.image_size,
            spec.mean,
            spec.std,
            args.Glr,
            weights,
            not args.no_clamp,
            device,
            args.together,
        )
        self.switch = GradientSwitch(args.adv, args.adv_start, fires_at_start=args.candidate_size is None)
        self.optimizer = torch.optim.Adam(self.learner.params.values(), lr=args.outer_lr)

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One outer update: a step of the pixels, then of the learner."""
        with self.clock("generation"):
            teachers = self.teachers.sample(self.args.candidate_size or len(self.teachers))
            harder = self.switch.on
            inversion_loss = self.pixels.step(teachers, self.against_learner() if harder else None)
        with self.clock("meta-training"):
            with torch.no_grad():
                episodes = self.draw(self.args.episode_batch)
            loss, accuracy = self.outer_step(self.optimizer, episodes)
        self.switch.note(iteration + 1, accuracy)
        return {"inversion_loss": inversion_loss, "loss": loss, "accuracy": accuracy, "harder": float(harder)}

    def draw(self, count: int) -> Episodes:
        """Episodes of the present pixels; gradients reach them."""
        per_class = self.args.synthesis_per_class
        classes, slots = draw_slots(torch.full((len(self.pixels.values),), per_class), self.train_shape, count)
        places = (classes[..., None] * per_class + slots).to(self.device)  # (E, N, K + Q)
        augment = self.augmentation if self.args.augment else None
        return pseudo_episodes(self.pixels.unit.flatten(0, 1), places, self.train_shape, self.learner, augment)

    def against_learner(self) -> Tensor:
        """-adv_scale * the outer loss of an episode, as a function of its pixels."""
        second_order = not self.args.first_order
        losses, _ = self.metalearner.outer_loss(self.learner.params, self.draw(1), self.args.inner_steps, second_order)
        return -self.args.adv_scale * losses.mean()

    def sit(self, exam: Exam) -> Score:
        """On meta_test, with `--icfil`, the learner is calibrated in each episode; looks at meta_val go without."""
        if not (self.args.icfil and exam.split_name == "meta_test"):
            return super().sit(exam)
        return examine(self.learner, ICFIL(self.metalearner, icfil_settings(self.args)), exam, self.args.test_inner_steps)

    def examined_how(self) -> str:
        return "calibrated by ICFIL" if self.args.icfil else ""

    def effort(self) -> dict[str, int]:
        share = min(1.0, (self.args.candidate_size or len(self.teachers)) / len(self.teachers))
        return {
            "images": self.args.way_train * self.args.synthesis_per_class,
            "steps": round(share * self.num_iterations),
        }

    def pictures(self) -> dict[str, tuple[Tensor, int]]:
        """The present images of up to 16 classes, one class a row."""
        columns = min(8, self.args.synthesis_per_class)
        return {"pixels": (to_uint8(self.pixels.unit[:16, :columns]).flatten(0, 1), columns)}

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        return [self.pixels.batch_of(self.teachers[teacher_id]) for teacher_id in teacher_ids]


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
