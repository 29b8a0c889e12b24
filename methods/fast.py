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
- `--reset_bn` draws the scales of the generator's normalisations anew, as its name says; the code never reads it.
- The pool is drawn from with replacement, each image shifted and mirrored by itself, and lies in memory, not in PNG files.
- Reptile's gradient is the difference itself, not 67 times it; Adam makes the same of both.
- The student's rate falls to the end of the run, however long that is; the code's cosine always takes 200 epochs.
- With warm-up the student's disagreement counts from its first epoch of training, not one epoch earlier.
"""

import argparse
from functools import partial
from typing import Any, ClassVar

import torch

from methods.data_free import PooledDistillation
from methods.inversion.bn_statistics import MomentumStatistics
from methods.inversion.generator import GeneratorInverter, InversionWeights, Settings, add_precision_flag, inversion_loss
from methods.inversion.meta_generator import LastingGenerator, MetaGenerator
from models.generator import Generator

RESET_EPOCH = 120  # after warm-up
# the paper's recipe for wrn40_2 -> wrn16_1 on CIFAR-100
RECIPE: dict[str, Any] = {"epochs": 220, "warmup": 20, "adv": 1.1, "bn": 10.0, "oh": 0.4, "bn_mmt": 0.9, "g_steps": 5}


class Fast(PooledDistillation):
    PAPER = "Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022 (without meta-learning)"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = RECIPE
    STATE: ClassVar[tuple[str, ...]] = (*PooledDistillation.STATE, "inverter", "statistics")
    READS: ClassVar[tuple[str, ...]] = ("adv", "bn", "oh", "lr_z", "bn_mmt", "reset_l0", "reset_bn", "cmi_init")

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        add_precision_flag(group)

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        self.statistics = MomentumStatistics(args.bn_mmt)
        weights = InversionWeights(args.oh, args.bn, args.adv)
        loss = partial(inversion_loss, weights=weights, augment=self.augmentation, record=self.statistics.record)
        self.generator = Generator(self.image_size, self.spec.channels).to(device)
        self.inverter = self.make_inverter(loss)

    def make_inverter(self, loss: Any) -> GeneratorInverter:
        args = self.args
        settings = Settings(args.g_steps, args.lr_g, args.lr_z, precision=args.precision)
        return LastingGenerator(self.generator, loss, settings)

    def synthesize(self, iteration: int) -> dict[str, float]:
        self.reset(iteration)
        student = self.student.logits if iteration >= self.args.warmup else None  # without it no disagreement is asked for
        batch, loss = self.inverter.invert_labels(self.teacher, self.draw_labels(), student)
        if self.args.bn_mmt:
            self.statistics.update()
        self.images.add(batch.images)
        return {"inversion_loss": loss}

    def reset(self, iteration: int) -> None:
        """Begin parts of the generator anew, once, where that was asked for."""
        if iteration != RESET_EPOCH + self.args.warmup:
            return
        if self.args.reset_l0:
            self.generator.reset_first_layer()
        if self.args.reset_bn:
            self.generator.reset_norms()


class FastMeta(Fast):
    PAPER = "Fang et al., Up to 100x Faster Data-free Knowledge Distillation, AAAI 2022"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = RECIPE | {"reset_l0": 1}
    READS: ClassVar[tuple[str, ...]] = (*Fast.READS, "is_maml")

    def make_inverter(self, loss: Any) -> MetaGenerator:
        args = self.args
        gradient_of = "sum" if args.is_maml else "difference"
        settings = Settings(args.g_steps, args.lr_g, args.lr_z, gradient_of, args.precision)
        return MetaGenerator(self.generator, loss, settings, lr_outer=args.g_steps * args.lr_g)
