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
- `--adv 1` is another strength: the code feeds probabilities to `F.kl_div`, with the learner as target and constant, so that
  the gradient only pushes the teacher away from the learner's answer. Ours is -KL(t || s) of log-probabilities, with the
  gradient through the learner too (`--adv_detach` stops that).
- The images kept are those of the step with the lowest loss; the code keeps the last step's.
- One lasting Adam moves the meta-generator; the code makes a new one at every call.
- What contends with the teachers is the learner; in the code it is whatever fast weights the last episode left behind, and
  after an evaluation those were adapted to a test support set, so that real test images reach generation.
- Teachers of an iteration are different ones; the code draws with replacement. Iterations count from 0 with 20 of warm-up;
  the code makes 999 with 19.
- Bytes in memory are rounded; the code truncates them (half a grey level).
- Replay's gradient is the mean over episodes, the code's the sum: they differ by Adam's eps alone.
- The replay's Adam sees only the replay's gradients. The code also feeds it the difference that distillation made,
  scaled by 67; here the learner moves by that difference itself, `--reptile_lr` of the way.
- The Kullback-Leibler divergence takes log-probabilities and is averaged over images.
- Every image is cropped and mirrored by itself, and images of other sizes are resized, not cut.
- With several image sets the learner's images have one size, 84, and one normalisation; the code tests each set at its own.
Our own:
- `--bn` adds the teachers' batch statistics to the inversion loss (the paper's script has none; default 0).
- `--augment` crops and mirrors pseudo-images in replay too, as inversion and distillation do. A generator gives each class a
  look of its own in every visit, and a learner that is never shown a changed look learns that instead.
"""

import argparse
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.distillation.divergences import kl_divergence
from methods.experiments.few_shot import FewShotMethod
from methods.experiments.few_shot_flags import add_replay_flags, add_teacher_batch_flag
from methods.inversion.by_generator import (
    BETAS,
    add_descent_flags,
    add_together_flag,
    copy_of,
    descent_of,
    follow,
    invert_each,
    mean_loss,
    together_of,
)
from methods.inversion.pseudo_batch import PseudoBatch
from methods.inversion.terms import Logits, add_term_flags, inversion_loss, weights_of
from methods.memory.bank import BATCHES_KEPT, MemoryBank
from methods.memory.replay import Replay
from methods.metalearners.gradients import reptile_step
from methods.metalearners.learner import LearnerSpec
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models.generator import Generator
from utils import cli
from utils.errors import UserError
from utils.images import Grid


class FREE(FewShotMethod):
    PAPER = "Wei et al., FREE: Faster and Better Data-Free Meta-Learning, CVPR 2024"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"epochs": 1000, "episode_batch": 10, "val_interval": 20}
    QUICK: ClassVar[dict[str, Any]] = {
        "epochs": 16, "warmup": 0, "val_interval": 4, "inversion_steps": 30, "Glr": 5e-3, "zlr": 1e-2, "bn": 0.03, "adv": 0.0,
        "meta_grad": "sum", "num_qur_kd": 20, "patience": 20, "metalearner": "protonet", "augment": True,
    }  # fmt: skip
    STATE = ("outer", "generator", "generator_optimizer", "memory")

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """FIVE on a few teachers; after warm-up BELL: distillation from them in turn, then replay of memory."""
        args = self.args
        teachers = self.teachers.sample(args.teacher_batch, args.way_train)
        with self.clock("generation"):  # FIVE
            student = self.learner.logits if iteration >= args.warmup else None
            loss = partial(self.loss, student=student)
            found = invert_each(teachers, args.num_qur_kd, copy_of(self.generator), loss, self.descent)
            follow(self.generator_optimizer, [one.gradient for one in found])
        numbers = {"inversion_loss": mean_loss(found)}
        if iteration < args.warmup:
            return numbers
        self.memory.add(*[one.batch for one in found])
        with self.clock("meta-training"):  # BELL
            fast = {name: value.detach().clone().requires_grad_() for name, value in self.learner.params.items()}
            optimizer = torch.optim.Adam(fast.values(), lr=args.outer_lr)
            losses: list[Tensor] = []
            for place in torch.randperm(len(teachers)).tolist():  # a step on each teacher
                x = self.teachers.augmentation(found[place].batch.images)
                with torch.no_grad():
                    answers = teachers[place](x)
                divergence = kl_divergence(answers, self.learner.logits(x, fast))
                optimizer.zero_grad()
                divergence.backward()
                optimizer.step()
                losses.append(divergence.detach())
            reptile_step(self.learner.params, fast, args.reptile_lr)
            numbers["distillation_loss"] = float(torch.stack(losses).mean())
            return numbers | self.replay.until_no_better()

    def loss(self, teacher: Teacher, images: Tensor, labels: Tensor, student: Logits | None) -> Tensor:
        """CE(t(x), y) + adv * adversarial(t(x), s(x)) on augmented images x, s the learner (none in warm-up)."""
        return inversion_loss(self.weights, teacher, self.teachers.augmentation(images), labels, student)

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        teachers.check_fit(args.way_train)
        self.weights, self.descent = weights_of(args), descent_of(args, args.meta_grad, together_of(args, self.device))
        self.generator = Generator(spec.image_size).to(self.device)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), args.Glr, betas=BETAS)
        self.memory = MemoryBank(len(teachers.class_names), BATCHES_KEPT * args.num_qur_kd, spec.image_size, self.device)
        self.replay = Replay.of(args, self.outer, self.memory, self.shape, teachers.augmentation)

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        add_descent_flags(group)
        add_together_flag(group)
        add_term_flags(group, ce=1.0, adv=1.0)
        group.add_argument(
            "--meta_grad", choices=("last", "sum"), default="last", help="which steps' gradients move the generator"
        )
        add_teacher_batch_flag(group)
        group.add_argument("--num_qur_kd", type=cli.count, default=20, help="pseudo-images of a class")
        group.add_argument("--warmup", type=cli.whole(0), default=20, help="first iterations, which train the generator alone")
        group.add_argument("--reptile_lr", type=cli.weight, default=1.0, help="how far the learner follows its distilled copy")
        add_replay_flags(group)

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.warmup >= args.epochs:
            raise UserError(
                f"--warmup {args.warmup} leaves none of --epochs {args.epochs} for the learner: lower it or train longer"
            )

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        """Pseudo-images as the run makes them now; the generator does not follow."""
        teachers = self.teachers.some(teacher_ids, self.args.way_train)
        loss = partial(self.loss, student=self.learner.logits)
        found = invert_each(teachers, self.args.num_qur_kd, copy_of(self.generator), loss, self.descent)
        return [one.batch for one in found]

    def pictures(self) -> dict[str, Grid]:
        return self.memory.picture(self.teachers.class_names)

    def summary(self) -> dict[str, Any]:
        args = self.args
        return {"inversion_of_one_teacher": {"images": args.way_train * args.num_qur_kd, "steps": args.inversion_steps}}
