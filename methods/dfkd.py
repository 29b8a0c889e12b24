"""The ways of data-free distillation that Fast-Datafree is compared with, as its repository has them.

DAFL (Chen et al., ICCV 2019), ZSKT (Micaelli and Storkey, NeurIPS 2019), DFAD (Fang et al., 2019) and DFQ (Choi et al.,
CVPR workshops 2020) train a generator beside the student, which learns from fresh samples. DeepInversion (Yin et al., CVPR
2020) and CMI (Fang et al., IJCAI 2021) fill a pool, from pixels and from generators that begin anew for each batch.

Deviations
----------
From the released code:
- A generator is trained against the student. The code passes the teacher in its place, so that its adversarial term is 0.
- Generator and student differ in the sign of one divergence. Of DAFL, ZSKT and DFQ its temperature is 1, whatever `--T` says:
  their scripts type `--T 20`, which their code never reads.
- DeepInversion's Jensen-Shannon divergence is the usual one (`methods.inversion.terms.jensen_shannon`).
- DeepInversion keeps the images of its best step; the code's are those after the last one. Its divergence is clamped to .01
  to .99 there.
- The student is the one of the last epoch, its rate falls to the run's end, and the pool holds rounded bytes in memory, as in
  `methods.fast`, whose list tells it.
- vgg11 halves its images a fourth time from 64 pixels on; the code's at exactly 64.
- While CMI's bank is exactly full the code takes it for empty, and its loss is nan for a call; ours draws from it.
- DeepInversion's --tv is the sum of four unsquared norms and --l2 the norm, both of images in [0, 1]; the code's are the mean
  absolute differences and the norm of normalised pixels. Both are 0 in its scripts.
- CMI remembers how the images it keeps look to the teacher in two fresh views, instead of those of the best step.
- CMI describes an image by its channel means at all normalisation layers; the code takes four stages' inputs for resnet34.
"""

import argparse
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.distillation.divergences import kl_divergence
from methods.experiments.data_free import SHORT, DataFreeDistillation, PooledDistillation
from methods.experiments.settings import Setting
from methods.experiments.whole_class import StudentSpec
from methods.inversion.bn_statistics import record_bn_distances, record_instance_means
from methods.inversion.by_generator import BETAS, Descent, invert_one
from methods.inversion.by_pixel import deep_inversion
from methods.inversion.contrastive import Contrast
from methods.inversion.terms import inversion_loss, jensen_shannon
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models.generator import Generator

SHARED: dict[str, Any] = {"batch_size": 256}  # that all of their scripts type
STUDENTS_SHARE = 0.001  # of the student's own statistics in DeepInversion


class Generative(DataFreeDistillation):
    """A generator that lasts, moved by `--g_steps` steps on fresh latents between the student's steps.

    bn * BN + oh * CE(t, argmax t) - act * mean |features| - adv * D(s, t) + balance * sum_c p_c log p_c
    """

    STATE: ClassVar[tuple[str, ...]] = (*DataFreeDistillation.STATE, "generator", "optimizer")
    LATENT: ClassVar[int] = 256

    def synthesize(self, iteration: int, call: int) -> dict[str, float]:
        for _ in range(self.args.g_steps):
            loss = self.generator_loss(self.generate(self.args.synthesis_batch_size))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return {"generator_loss": float(loss.detach())}

    def generate(self, count: int) -> Tensor:
        return self.generator(torch.randn(count, self.generator.latent_dim, device=self.device))

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        return self.generate(count)

    def generator_loss(self, images: Tensor) -> Tensor:
        return inversion_loss(self.weights, self.teacher, images, None, self.student.logits, self.adversary)

    def difference(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """D(s, t) = KL(t || s), which the student minimises."""
        return kl_divergence(teacher_logits, student_logits)

    def adversary(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """-D(s, t), which the generator minimises."""
        return -self.difference(student_logits, teacher_logits)

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        self.generator = Generator(spec.image_size, latent_dim=self.LATENT).to(self.device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), args.lr_g, betas=BETAS)


class DAFL(Generative):
    PAPER = "Chen et al., Data-Free Learning of Student Networks (DAFL), ICCV 2019"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = SHARED | {"kd_steps": 5, "oh": 1.0, "act": 0.001, "balance": 20.0}
    LATENT = 512


class ZSKT(Generative):
    PAPER = "Micaelli and Storkey, Zero-shot Knowledge Transfer via Adversarial Belief Matching, NeurIPS 2019"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = SHARED | {"kd_steps": 5, "adv": 1.0}


class DFAD(Generative):
    """Student and generator contend about the mean absolute difference of the logits."""

    PAPER = "Fang et al., Data-Free Adversarial Distillation (DFAD), 2019"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = SHARED | {"kd_steps": 5, "adv": 1.0, "T": 1.0}

    def difference(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """D(s, t) = mean |s - t|."""
        return F.l1_loss(student_logits, teacher_logits)


class DFQ(Generative):
    PAPER = "Choi et al., Data-Free Network Quantization with Adversarial Knowledge Distillation (DFQ), CVPR workshops 2020"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = SHARED | {"kd_steps": 10, "adv": 1.0, "bn": 1.0, "oh": 1.0, "balance": 20.0}


class DeepInversion(PooledDistillation):
    PAPER = "Yin et al., Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion, CVPR 2020"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = SHARED | {
        "adv": 1.0,
        "bn": 10.0,
        "oh": 1.0,
        "g_steps": 1000,
        "lr_g": 0.1,
    }
    SETTINGS = (Setting({"g_steps": 10}, {"lr_g": 1.0, "kd_steps": 200, "ep_steps": 200}),)
    QUICK: ClassVar[dict[str, Any]] = SHORT | {"kd_steps": 40, "g_steps": 100}
    READS: ClassVar[tuple[str, ...]] = ("T", "cmi_init")

    def synthesize(self, iteration: int, call: int) -> dict[str, float]:
        labels = self.draw_labels().to(self.device)
        args, form = self.args, self.spec.form
        images, loss = deep_inversion(
            lambda images: self.pixel_loss(images, labels), len(labels), form, args.g_steps, args.lr_g, self.device
        )
        self.images.add(images)
        return {"inversion_loss": loss}

    def pixel_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """oh * CE + bn * (BN of the teacher - .001 BN of the student) - adv * JS(student, teacher)."""
        with record_bn_distances(self.network) as own:
            answers = self.student.logits(images)
        loss = inversion_loss(self.weights, self.teacher, images, labels, lambda _: answers, self.adversary)
        return loss - self.args.bn * STUDENTS_SHARE * torch.stack(own).sum() if own else loss

    def adversary(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """-JS(s, t): images on which both disagree."""
        return -jensen_shannon(student_logits, teacher_logits)


class CMI(PooledDistillation):
    PAPER = "Fang et al., Contrastive Model Inversion for Data-Free Knowledge Distillation (CMI), IJCAI 2021"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = SHARED | {
        "adv": 0.5, "bn": 1.0, "oh": 1.0, "cr": 0.8, "cr_T": 0.2, "g_steps": 200,
    }  # fmt: skip
    SETTINGS = (Setting({"g_steps": 5}, {"cr": 0.0}),)
    QUICK: ClassVar[dict[str, Any]] = SHORT | {"kd_steps": 40, "g_steps": 50}
    STATE: ClassVar[tuple[str, ...]] = (*PooledDistillation.STATE, "contrast")
    READS: ClassVar[tuple[str, ...]] = ("T", "cr", "cr_T", "cmi_init")

    def synthesize(self, iteration: int, call: int) -> dict[str, float]:
        labels, beside = self.draw_labels(), list(self.contrast.head.parameters())
        generator = Generator(self.spec.image_size).to(self.device).redraw()
        found = invert_one(self.teacher, labels, generator, self.loss, self.descent, beside)
        if self.args.cr:
            self.contrast.learn()
            self.contrast.remember(found.batch.images)
        self.images.add(found.batch.images)
        return {"inversion_loss": float(found.loss)}

    def loss(self, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        """The usual terms on a shifted view, + cr * the contrast of that view with a stretched crop."""
        with record_instance_means(teacher.network) as means:
            loss = inversion_loss(self.weights, teacher, self.augmentation(images), labels, self.student.logits)
        if not self.args.cr:
            return loss
        self.contrast.learn()  # from the step before
        shifted = torch.cat(means, 1)  # how the view that was inverted looks to the teacher
        return loss + self.args.cr * self.contrast.loss(images, shifted)

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: StudentSpec) -> None:
        super().__init__(args, teachers, spec)
        self.contrast = Contrast(self.teacher, spec.image_size, args.lr_g, args.cr_T, self.device)
        self.descent = Descent(args.g_steps, args.lr_g, args.lr_g)
