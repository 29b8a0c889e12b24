"""Inversion through a generator: descend on its weights and its latents until the teacher sees the wanted classes."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.inversion.bn_statistics import record_bn_distances
from methods.inversion.losses import adversarial_loss
from models.generator import Generator
from utils import cli, distributed
from utils.errors import BudgetSpent
from utils.precision import PRECISIONS, autocast

LearnerLogits = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> logits (B, N)


class Subject(Protocol):
    """What every teacher says of itself: the pool's ids of its classes, how many, and the size of its images."""

    @property
    def class_ids(self) -> tuple[int, ...]: ...

    @property
    def way(self) -> int: ...

    @property
    def image_size(self) -> int: ...


class Invertible(Subject, Protocol):
    """What white-box inversion needs: logits (B, way) of images (B, C, H, W) in [0, 1], and the network inside."""

    @property
    def network(self) -> nn.Module: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PseudoBatch:
    """What one teacher gave back: images (M, C, h, w) in [0, 1], labels (M,) in 0..way-1, the classes' ids in the pool."""

    images: Tensor
    labels: Tensor
    class_ids: tuple[int, ...]


@dataclass(frozen=True)
class InversionWeights:
    """Weights of the loss terms: the papers' oh, bn and adv."""

    ce: float = 1.0
    bn: float = 0.0
    adv: float = 1.0


def inversion_loss(
    teacher: Invertible,
    images: Tensor,
    labels: Tensor,
    learner: LearnerLogits | None,
    weights: InversionWeights,
    augment: Callable[[Tensor], Tensor],
    record: Callable[[nn.Module], AbstractContextManager[list[Tensor]]] = record_bn_distances,
) -> Tensor:
    """ce * CE(teacher(x), y) + bn * BN + adv * adversarial, on x = augment(images), images (M, C, h, w) in [0, 1].

    `record` says how far the statistics of each layer lie from what it remembers.
    """
    x = augment(images)
    recording = record(teacher.network) if weights.bn else nullcontext([])
    with recording as distances:
        logits = teacher(x)
    loss = weights.ce * F.cross_entropy(logits, labels)
    if distances:
        loss = loss + weights.bn * torch.stack(distances).sum()
    if weights.adv and learner is not None:
        loss = loss + weights.adv * adversarial_loss(logits, learner(x))
    return loss


@dataclass(frozen=True)
class Descent:
    """The result of `descend`: the images of the best step, that step's loss, and what moves a shared generator."""

    images: Tensor
    loss: Tensor
    gradient: list[Tensor]


def descend(
    generator: Generator,
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    steps: int,
    lr: float,
    lr_latent: float,
    gradient_of: str = "last",
    precision: str = "fp32",
) -> Descent:
    """Take `steps` Adam(.5, .999) steps on `generator` (in place) and on `count` fresh latents z ~ N(0, I).

    The images kept are those of the step with the lowest loss, chosen on the device without waiting for it.
    A loss that raises `BudgetSpent` ends the descent early, with what it has; at the first step it is passed on.
    `gradient_of` says whether `gradient` (one tensor per generator parameter) is the "last" step's, the "sum" over steps,
    or the "difference" between where the parameters began and where they ended (Reptile). With `precision` "bf16" the
    generator and what the loss asks run in bfloat16; parameters, statistics and the steps stay in float32.
    """
    parameters = list(generator.parameters())
    device = parameters[0].device
    z = torch.randn(count, generator.latent_dim, device=device, requires_grad=True)
    groups = [{"params": parameters, "lr": lr}, {"params": [z], "lr": lr_latent}]
    optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999))
    best = torch.full((), float("inf"), device=device)
    kept = torch.empty(0, device=device)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    before = [parameter.detach().clone() for parameter in parameters] if gradient_of == "difference" else []
    for step in range(steps):
        try:
            with autocast(device, precision):
                images = generator(z)  # (count, C, S, S)
                loss = loss_of(images)
        except BudgetSpent:
            if step == 0:
                raise
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=[*parameters, z])  # not the learner's
        for sum_, parameter in zip(total, parameters, strict=True):
            if parameter.grad is not None and (gradient_of == "sum" or (gradient_of == "last" and step == steps - 1)):
                sum_ += parameter.grad
        optimizer.step()
        better = loss.detach() < best
        kept = images.detach() if step == 0 else torch.where(better, images.detach(), kept)
        best = torch.where(better, loss.detach(), best)
    if before:
        total = [start - parameter.detach() for start, parameter in zip(before, parameters, strict=True)]
    return Descent(kept.float(), best, total)


# (teacher, images in [0, 1], labels, learner) -> what a step descends on
InversionLoss = Callable[[Any, Tensor, Tensor, LearnerLogits | None], Tensor]


class GeneratorInverter:
    """Inverts each teacher by `steps` steps on a generator and latents of its own; `start` says where those begin."""

    def __init__(
        self,
        loss: InversionLoss,
        steps: int = 5,
        lr: float = 1e-3,
        lr_latent: float = 1e-3,
        gradient_of: str = "last",
        precision: str = "fp32",
    ) -> None:
        self.loss = loss
        self.steps = steps
        self.lr = lr
        self.lr_latent = lr_latent
        self.gradient_of = gradient_of
        self.precision = precision

    def invert(
        self, teachers: Sequence[Subject], images_per_class: int, learner: LearnerLogits | None = None
    ) -> tuple[list[PseudoBatch], float]:
        """Pseudo-images of each teacher, and the mean of their lowest losses.

        Each teacher has random numbers of its own, so that several processes can share them.
        """
        seeds = torch.randint(2**62, (len(teachers),)).tolist()
        own = []
        for teacher, seed in list(zip(teachers, seeds, strict=True))[distributed.share()]:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                own.append(self.invert_one(teacher, images_per_class, learner))
        batches, descents = zip(*distributed.gathered(own), strict=True)
        self.learn_from(descents)
        return list(batches), float(torch.stack([descent.loss for descent in descents]).mean())

    def learn_from(self, descents: Sequence[Descent]) -> None:
        """What the inverter takes from the descents of a call: here, nothing."""

    def start(self, teacher: Subject) -> Generator:
        """The generator that `teacher` is inverted with; it is changed in place."""
        raise NotImplementedError

    def invert_labels(
        self, teacher: Subject, labels: Tensor, learner: LearnerLogits | None = None
    ) -> tuple[PseudoBatch, float]:
        """Pseudo-images of one teacher for wanted `labels` (M,), in their order, and the lowest loss."""
        batch, descent = self._descend(teacher, labels, learner)
        self.learn_from([descent])
        return batch, float(descent.loss)

    def invert_one(self, teacher: Subject, images_per_class: int, learner: LearnerLogits | None) -> tuple[PseudoBatch, Descent]:
        return self._descend(teacher, labels_of(teacher, images_per_class), learner)

    def _descend(self, teacher: Subject, labels: Tensor, learner: LearnerLogits | None) -> tuple[PseudoBatch, Descent]:
        generator = self.start(teacher)
        labels = labels.to(next(generator.parameters()).device)
        descent = descend(
            generator,
            lambda images: self.loss(teacher, images, labels, learner),
            len(labels),
            self.steps,
            self.lr,
            self.lr_latent,
            self.gradient_of,
            self.precision,
        )
        return PseudoBatch(descent.images, labels, teacher.class_ids), descent


class FreshGenerator(GeneratorInverter):
    """Every teacher is inverted with a newly initialised generator of images of the teacher's own size."""

    def __init__(self, device: torch.device, *settings: Any, **more: Any) -> None:
        super().__init__(*settings, **more)
        self.device = device

    def start(self, teacher: Subject) -> Generator:
        return Generator(teacher.image_size).to(self.device)


def add_generator_flags(group: argparse._ArgumentGroup) -> None:
    """Steps, rates and weights of an inversion by generator."""
    group.add_argument("--inversion_steps", type=cli.count, default=5, help="steps on one teacher")
    group.add_argument("--Glr", type=cli.rate, default=1e-3, help="learning rate of the generator")
    group.add_argument("--zlr", type=cli.rate, default=1e-3, help="learning rate of the latents")
    group.add_argument("--oh", type=float, default=1.0, help="weight of the cross entropy")
    group.add_argument("--bn", type=float, default=0.0, help="weight of the batch statistics")
    add_precision_flag(group)


def add_precision_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of generator and teachers in inversion")


def labels_of(teacher: Subject, images_per_class: int, device: torch.device | None = None) -> Tensor:
    """Labels (way * images_per_class,), grouped by class."""
    return torch.arange(teacher.way, device=device).repeat_interleave(images_per_class)
