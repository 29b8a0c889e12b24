"""FREE: Faster and Better Data-Free Meta-Learning (Wei et al., CVPR 2024).

FIVE (faster inversion via meta-generator): each iteration takes a few teachers, adapts a copy of a shared generator to
each in a few steps, and moves the shared generator by the gradients it met. BELL (better generalisation via
meta-learner): the learner is distilled through the same teachers in random order and moved towards where that led,
then meta-trained on episodes of the memory bank, which mix classes of all teachers met so far.

Deviations
----------
From the released code:
- All teachers' images enter the memory bank; the code keeps those of the last teacher of an iteration.
- With `--pre_backbone mix` each of the teachers is its own model; the code loads all weights into one.
- The replay's Adam sees only the replay's gradients. The code also feeds it the difference that distillation made,
  scaled by 67; here the learner moves by that difference itself, `--reptile_lr` of the way.
- The Kullback-Leibler divergence takes log-probabilities and is averaged over images.
- Every image is cropped and mirrored by itself, and images of other sizes are resized, not cut.
Our own:
- `--bn` adds the teachers' batch statistics to the inversion loss (the paper's script has none; default 0).
- `--augment` augments pseudo-images in distillation and replay as inversion does before the teacher. A generator gives
  each class a look of its own in every visit, and a learner that is never shown a changed look learns that instead.
"""

import argparse
import copy
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.distillation.losses import kl_divergence
from methods.few_shot import FewShotMethod, add_replay_flags
from methods.inversion.generator import InversionWeights, Settings, add_generator_flags, inversion_loss
from methods.inversion.meta_generator import MetaGenerator
from methods.inversion.subjects import PseudoBatch
from methods.memory import BATCHES_KEPT, MemoryBank
from methods.metalearners.gradients import reptile_step
from methods.teachers.pool import Teacher
from models.generator import Generator
from utils import cli
from utils.errors import UserError


class FREE(FewShotMethod):
    PAPER = "Wei et al., FREE: Faster and Better Data-Free Meta-Learning, CVPR 2024"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"epochs": 1000, "episode_batch": 10, "val_interval": 20}
    STATE = ("learner", "optimizer", "inverter", "memory")

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        add_generator_flags(group)
        group.add_argument("--adv", type=float, default=1.0, help="weight of the adversarial term")
        group.add_argument(
            "--meta_grad", choices=("last", "sum"), default="last", help="which steps' gradients move the generator"
        )
        group.add_argument("--teacher_batch", type=cli.count, default=4, help="teachers of an iteration")
        group.add_argument("--num_qur_kd", type=cli.count, default=20, help="pseudo-images of a class")
        group.add_argument("--warmup", type=int, default=20, help="first iterations, which train the generator alone")
        group.add_argument("--reptile_lr", type=float, default=1.0, help="how far the learner follows its distilled copy")
        add_replay_flags(group)

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        self.check_teachers_fit_the_head()
        if args.warmup >= args.epochs:
            raise UserError(
                f"--warmup {args.warmup} leaves none of --epochs {args.epochs} for the learner: lower it or train longer"
            )
        weights = InversionWeights(args.oh, args.bn, args.adv)
        self.inverter = MetaGenerator(
            Generator(self.image_size).to(device),
            partial(inversion_loss, weights=weights, augment=self.augmentation),
            Settings(args.inversion_steps, args.Glr, args.zlr, args.meta_grad, args.precision),
            lr_outer=args.Glr,
            together=args.together,
        )
        capacity = BATCHES_KEPT * args.num_qur_kd
        self.memory = MemoryBank(len(self.teachers.class_names), capacity, self.image_size, device)
        self.optimizer = torch.optim.Adam(self.learner.params.values(), lr=args.outer_lr)

    def train_iteration(self, iteration: int) -> dict[str, float]:
        with self.clock("generation"):
            teachers = self.teachers.sample(self.args.teacher_batch, self.args.way_train)
            batches, inversion_loss = self.invert(teachers)
        numbers = {"inversion_loss": inversion_loss}
        if iteration < self.args.warmup:
            return numbers
        for batch in batches:
            self.memory.add(batch)
        with self.clock("meta-training"):
            numbers["distillation_loss"] = self.distil(teachers, batches)
            numbers |= self.replay(self.memory, self.optimizer)
        return numbers

    def invert(self, teachers: list[Teacher]) -> tuple[list[PseudoBatch], float]:
        """FIVE: pseudo-images of each teacher, and the mean inversion loss."""
        return self.inverter.invert(teachers, self.args.num_qur_kd, self.learner.logits)

    def distil(self, teachers: list[Teacher], batches: list[PseudoBatch]) -> float:
        """BELL before replay: a copy of the learner passes through the teachers; the learner follows. Returns the mean loss."""
        params = {name: value.detach().clone().requires_grad_() for name, value in self.learner.params.items()}
        optimizer = torch.optim.Adam(params.values(), lr=self.args.outer_lr)
        losses: list[Tensor] = []
        for index in torch.randperm(len(teachers)).tolist():
            images = batches[index].images
            images = self.augmentation(images) if self.args.augment else images
            with torch.no_grad():
                answers = teachers[index](images)
            loss = kl_divergence(answers, self.learner.logits(images, params))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        reptile_step(self.learner.params, params, self.args.reptile_lr)
        return float(torch.stack(losses).mean())

    def effort(self) -> dict[str, int]:
        return {"images": self.args.way_train * self.args.num_qur_kd, "steps": self.args.inversion_steps}

    def pictures(self) -> dict[str, tuple[Tensor, int]]:
        return self.memory.picture()

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        """Pseudo-images as the run makes them now, leaving the run untouched."""
        inverter = copy.deepcopy(self.inverter)
        teachers = [self.teachers[teacher_id].narrowed(self.args.way_train) for teacher_id in teacher_ids]
        return inverter.invert(teachers, self.args.num_qur_kd, self.learner.logits)[0]
