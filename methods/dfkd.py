"""The ways of data-free distillation that Fast-Datafree is compared with, as its repository has them.

DAFL (Chen et al., ICCV 2019), ZSKT (Micaelli and Storkey, NeurIPS 2019), DFAD (Fang et al., 2019) and DFQ (Choi et al.,
CVPR workshops 2020) train a generator beside the student, which learns from fresh samples. DeepInversion (Yin et al., CVPR
2020) and CMI (Fang et al., IJCAI 2021) fill a pool, from pixels and from generators that begin anew for each batch.

Deviations
----------
From the released code:
- A generator is trained against the student. The code passes the teacher in its place, so that its adversarial term is 0.
- Generator and student differ in the sign of one divergence, at one temperature, `--T`; the code leaves `--T` unread here.
- DeepInversion's Jensen-Shannon divergence is the usual one (`methods.inversion.losses.jensen_shannon`).
- CMI remembers how the images it keeps look to the teacher in two fresh views, instead of those of the best step.
- CMI describes an image by its channel means at all normalisation layers; the code takes four stages' outputs for resnet34.
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.data_free import DataFreeDistillation, PooledDistillation
from methods.inversion.bn_statistics import record_bn_distances, record_instance_means
from methods.inversion.contrastive import Contrast
from methods.inversion.generator import FreshGenerator, InversionWeights, LearnerLogits, Settings, inversion_loss
from methods.inversion.losses import imbalance, jensen_shannon
from methods.inversion.pixel import PixelForm, deep_inversion
from methods.teachers.pool import Teacher
from models.generator import Generator

STUDENTS_SHARE = 0.001  # of the student's own statistics in DeepInversion


class Generative(DataFreeDistillation):
    """A generator that lasts, moved by `--g_steps` steps on fresh latents between the student's steps.

    bn * BN + oh * CE(t, argmax t) - act * mean |features| - adv * D(s, t) + balance * sum_c p_c log p_c
    """

    STATE: ClassVar[tuple[str, ...]] = (*DataFreeDistillation.STATE, "generator", "optimizer")
    READS: ClassVar[tuple[str, ...]] = ("adv", "bn", "oh", "act", "balance")
    LATENT: ClassVar[int] = 256

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        self.generator = Generator(self.image_size, self.spec.channels, self.LATENT).to(device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), args.lr_g, betas=(0.5, 0.999))

    def synthesize(self, iteration: int) -> dict[str, float]:
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
        args = self.args
        network = self.teacher.network
        recording: AbstractContextManager[list[Tensor]] = record_bn_distances(network) if args.bn else nullcontext([])
        with recording as distances:
            features, logits = self.teacher.features_and_logits(images)
        loss = args.oh * F.cross_entropy(logits, logits.argmax(1))
        if args.bn:
            loss = loss + args.bn * torch.stack(distances).sum()
        if args.act:
            loss = loss - args.act * features.abs().mean()
        if args.balance:
            loss = loss + args.balance * imbalance(logits)
        if args.adv:
            loss = loss - args.adv * self.difference(self.student.logits(images), logits)
        return loss


class DAFL(Generative):
    PAPER = "Chen et al., Data-Free Learning of Student Networks (DAFL), ICCV 2019"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"kd_steps": 5, "oh": 1.0, "act": 0.001, "balance": 20.0}
    LATENT = 512


class ZSKT(Generative):
    PAPER = "Micaelli and Storkey, Zero-shot Knowledge Transfer via Adversarial Belief Matching, NeurIPS 2019"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"kd_steps": 5, "adv": 1.0}


class DFAD(Generative):
    """Student and generator contend about the mean absolute difference of the logits."""

    PAPER = "Fang et al., Data-Free Adversarial Distillation (DFAD), 2019"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"kd_steps": 5, "adv": 1.0}

    def difference(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return F.l1_loss(student_logits, teacher_logits)


class DFQ(Generative):
    PAPER = "Choi et al., Data-Free Network Quantization with Adversarial Knowledge Distillation (DFQ), CVPR workshops 2020"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"kd_steps": 10, "adv": 1.0, "bn": 1.0, "oh": 1.0, "balance": 20.0}


class DeepInversion(PooledDistillation):
    PAPER = "Yin et al., Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion, CVPR 2020"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {"adv": 1.0, "bn": 10.0, "oh": 1.0, "g_steps": 1000, "lr_g": 0.1}
    READS: ClassVar[tuple[str, ...]] = ("adv", "bn", "oh", "cmi_init")

    def synthesize(self, iteration: int) -> dict[str, float]:
        labels = self.draw_labels().to(self.device)
        form = PixelForm(self.image_size, self.spec.mean, self.spec.std)
        images, loss = deep_inversion(
            lambda images: self.pixel_loss(images, labels), len(labels), form, self.args.g_steps, self.args.lr_g, self.device
        )
        self.images.add(images)
        return {"inversion_loss": loss}

    def pixel_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """bn * (BN of the teacher - .001 BN of the student) + oh * CE - adv * JS(student, teacher)."""
        args = self.args
        with record_bn_distances(self.teacher.network) as theirs:
            logits = self.teacher(images)
        loss = args.oh * F.cross_entropy(logits, labels) + args.bn * torch.stack(theirs).sum()
        with record_bn_distances(self.network) as own:
            answers = self.student.logits(images)
        if own:
            loss = loss - args.bn * STUDENTS_SHARE * torch.stack(own).sum()
        return loss - args.adv * jensen_shannon(answers, logits)


class CMI(PooledDistillation):
    PAPER = "Fang et al., Contrastive Model Inversion for Data-Free Knowledge Distillation (CMI), IJCAI 2021"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {
        "adv": 0.5, "bn": 1.0, "oh": 1.0, "cr": 0.8, "cr_T": 0.2, "g_steps": 200,
    }  # fmt: skip
    STATE: ClassVar[tuple[str, ...]] = (*PooledDistillation.STATE, "contrast")
    READS: ClassVar[tuple[str, ...]] = ("adv", "bn", "oh", "cr", "cr_T", "cmi_init")

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        self.contrast = Contrast(self.teacher, self.image_size, args.lr_g, args.cr_T, device)
        self.weights = InversionWeights(args.oh, args.bn, args.adv)
        settings = Settings(args.g_steps, args.lr_g, args.lr_g)
        self.inverter = FreshGenerator(device, self.loss, settings, beside=list(self.contrast.head.parameters()))

    def loss(self, teacher: Teacher, images: Tensor, labels: Tensor, student: LearnerLogits | None) -> Tensor:
        with record_instance_means(teacher.network) as means:
            loss = inversion_loss(teacher, images, labels, student, self.weights, self.augmentation)
        if not self.args.cr:
            return loss
        self.contrast.learn()  # from the step before
        shifted = torch.cat(means, 1)  # how the view that was inverted looks to the teacher
        return loss + self.args.cr * self.contrast.loss(images, shifted)

    def synthesize(self, iteration: int) -> dict[str, float]:
        batch, loss = self.inverter.invert_labels(self.teacher, self.draw_labels(), self.student.logits)
        if self.args.cr:
            self.contrast.learn()
            self.contrast.remember(batch.images)
        self.images.add(batch.images)
        return {"inversion_loss": loss}
