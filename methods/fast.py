"""Up to 100x Faster Data-free Knowledge Distillation (Fang et al., AAAI 2022): Fast-Datafree.

A teacher is distilled into a student by images that a generator makes of the teacher. The generator is meta-learned over
the calls (`fast_meta`): each takes a copy a few steps towards new random latents and labels, by cross entropy, batch
statistics and disagreement with the student, and the generator follows the steps' gradients (FOMAML) or the way the copy
went (Reptile). So a few steps are enough where inversion from scratch needs thousands. The images of the best step enter a
pool from which the student learns. `fast` is the variant without meta-learning: one generator that is trained on.

Deviations
----------
From the released code:
- The student is the one of the last epoch; the code keeps the one that is best on the test set.
- Pixels are rounded to bytes; the code truncates them, which makes them half a grey level darker, and its pool reads every
  picture in the folder, those of earlier runs too.
- On ImageNet the code has a script of its own, which is not built here; ours is the generator and the recipe of the small
  sets. The code's generator there has 1.4 million parameters, 0.6 million of them used, and latents of 14 x 14. Its Reptile
  follows the bare difference at a rate of 1e-4, moves the latent, too, which it keeps from call to call, and keeps the last
  step's images; latent and outer Adam begin anew every 50 calls. Its student's rate falls to 0, ours to 2e-4.
- The pool is drawn from with replacement, each image shifted and mirrored by itself, and lies in memory, not in PNG files.
- The student's rate falls to the end of the run, however long that is; the code's cosine always takes 200 epochs.
- With warm-up the student's disagreement counts from its first epoch of training, not one epoch earlier: the code counts calls
  of generation, and begins with call number `--warmup`, however many an epoch has.
"""

import argparse
import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.experiments.data_free import SHORT, PooledDistillation
from methods.experiments.settings import Setting
from methods.experiments.whole_class import StudentSpec
from methods.inversion.bn_statistics import MomentumStatistics
from methods.inversion.by_generator import BETAS, Descent, Loss, Recovered, add_precision_flag, follow, invert_one
from methods.inversion.terms import inversion_loss
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models.generator import Generator

REPTILE_SCALE = 67.0  # of the way that the copy went, before it is handed to Adam; the released code's number
RESET_CALL = 120  # of generation, after as many as warm-up has epochs
# the scripts' recipe for wide ResNets on CIFAR-100
RECIPE: dict[str, Any] = {
    "epochs": 220, "warmup": 20, "adv": 1.1, "bn": 10.0, "oh": 0.4, "bn_mmt": 0.9, "g_steps": 5, "lr": 0.2,
    "batch_size": 256,
}  # fmt: skip
RATES = tuple(  # by steps of a call
    Setting({"g_steps": steps}, {"lr_g": lr_g, "lr_z": lr_z})
    for steps, lr_g, lr_z in ((2, 5e-3, 0.015), (5, 3e-3, 0.01), (10, 2e-3, 0.01))
)
PAIRS = (  # by networks
    Setting({"teacher": "resnet34", "student": "resnet18"}, {"adv": 1.33, "oh": 0.5}),
    Setting({"teacher": "vgg11", "student": "resnet18"}, {"adv": 1.0, "oh": 0.5}),
)


class Fast(PooledDistillation):
    PAPER = "Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022 (without meta-learning)"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = RECIPE
    SETTINGS = (*RATES, *PAIRS)
    QUICK: ClassVar[dict[str, Any]] = SHORT | {
        "epochs": 24, "warmup": 4, "kd_steps": 40, "synthesis_batch_size": 256, "lr": 0.1,
    }  # fmt: skip
    STATE: ClassVar[tuple[str, ...]] = (*PooledDistillation.STATE, "generator", "statistics")
    READS: ClassVar[tuple[str, ...]] = ("T", "lr_z", "bn_mmt", "cmi_init")

    def synthesize(self, iteration: int, call: int) -> dict[str, float]:
        found = self.invert(self.draw_labels(), self.loss_at(iteration))
        if self.args.bn_mmt:
            self.statistics.update()
        self.images.add(found.batch.images)
        return {"inversion_loss": float(found.loss)}

    def invert(self, labels: Tensor, loss: Loss) -> Recovered:
        """One generator is trained on from call to call, each time by a fresh Adam."""
        return invert_one(self.teacher, labels, self.generator, loss, self.descent)

    def loss_at(self, iteration: int) -> Loss:
        """oh * CE(t(x), y) + bn * BN + adv * adversarial(t(x), s(x)) on augmented x; in warm-up no student is asked."""
        student = self.student.logits if iteration >= self.args.warmup else None

        def loss(teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
            x = self.augmentation(images)
            return inversion_loss(self.weights, teacher, x, labels, student, record=self.statistics.record)

        return loss

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        self.statistics = MomentumStatistics(args.bn_mmt, self.device)
        self.generator = Generator(spec.image_size).to(self.device)
        self.descent = Descent(args.g_steps, args.lr_g, args.lr_z, precision=args.precision)

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        PooledDistillation.add_args(group)
        add_precision_flag(group)


class FastMeta(Fast):
    PAPER = "Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = RECIPE | {"reset_l0": 1}
    STATE: ClassVar[tuple[str, ...]] = (*Fast.STATE, "generator_optimizer")
    READS: ClassVar[tuple[str, ...]] = (*Fast.READS, "is_maml", "reset_l0")

    def synthesize(self, iteration: int, call: int) -> dict[str, float]:
        if self.args.reset_l0 and call == RESET_CALL + self.args.warmup:
            self.generator.reset_first_layers()
        return super().synthesize(iteration, call)

    def invert(self, labels: Tensor, loss: Loss) -> Recovered:
        """A copy takes the steps; the generator follows their gradients (FOMAML), or the way that the copy went (Reptile)."""
        fast = copy.deepcopy(self.generator)
        found = invert_one(self.teacher, labels, fast, loss, self.descent)
        scale = 1.0 if self.args.is_maml else REPTILE_SCALE
        follow(self.generator_optimizer, [[scale * part for part in found.gradient]])
        return found

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        gradient_of = "sum" if args.is_maml else "difference"
        self.descent = Descent(args.g_steps, args.lr_g, args.lr_z, gradient_of, args.precision)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), args.g_steps * args.lr_g, betas=BETAS)
