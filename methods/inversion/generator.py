"""Inversion through a generator: descend on its weights and its latents until the teacher sees the wanted classes."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.inversion.bn_statistics import record_bn_distances
from methods.inversion.losses import adversarial_loss
from methods.inversion.stacked import Stack, alike, mapped
from methods.inversion.subjects import Invertible, PseudoBatch, Subject, labels_of
from models.generator import Generator
from utils import cli, distributed
from utils.errors import BudgetSpent, UserError
from utils.precision import PRECISIONS, autocast

LearnerLogits = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> logits (B, N)


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
class Settings:
    """How to descend. `gradient_of` says what `Descent.gradient` is: that of the "last" step, the "sum" over the steps, or
    the "difference" between where the parameters began and where they ended (Reptile). With `precision` "bf16" the generator
    and what the loss asks run in bfloat16; parameters, statistics and the steps stay in float32.
    """

    steps: int = 5
    lr: float = 1e-3
    lr_latent: float = 1e-3
    gradient_of: str = "last"
    precision: str = "fp32"


DEFAULTS = Settings()


@dataclass(frozen=True)
class Descent:
    """The result of `descend`: the images of the best step, that step's loss, and what moves a shared generator."""

    images: Tensor
    loss: Tensor
    gradient: list[Tensor]


def descend(
    generator: Generator, loss_of: Callable[[Tensor], Tensor], count: int, settings: Settings, beside: Sequence[Tensor] = ()
) -> Descent:
    """Take Adam(.5, .999) steps on `generator` (in place) and on `count` fresh latents z ~ N(0, I).

    The images kept are those of the step with the lowest loss, chosen on the device without waiting for it.
    A loss that raises `BudgetSpent` ends the descent early, with what it has; at the first step it is passed on. Of all else
    that the loss asks, only the tensors `beside` get gradients.
    """

    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        images = generator(z)  # (count, C, S, S)
        return images, loss_of(images)

    return _descend(forward, list(generator.parameters()), draw_latents(generator, count), settings, beside)


def draw_latents(generator: Generator, count: int) -> Tensor:
    """z ~ N(0, I), (count, latent_dim), where the generator is."""
    return torch.randn(count, generator.latent_dim, device=next(generator.parameters()).device)


def descend_together(
    generators: Sequence[Generator], latents: Sequence[Tensor], losses_of: Callable[[Tensor], Tensor], settings: Settings
) -> list[Descent]:
    """`descend` for K generators at once, each from its own latents (count, latent_dim), which stay as they are.

    `losses_of` maps images (K, count, C, S, S) to losses (K,), each of one generator's images alone.
    """
    state = torch.func.stack_module_state(cast(list[nn.Module], list(generators)))

    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        images = mapped(generators[0], state, z)  # (K, count, C, S, S)
        return images, losses_of(images)

    done = _descend(forward, list(state[0].values()), torch.stack(list(latents)), settings)
    return [
        Descent(images, loss, [whole[place] for whole in done.gradient])
        for place, (images, loss) in enumerate(zip(done.images, done.loss, strict=True))
    ]


def _descend(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    parameters: list[Tensor],
    z: Tensor,
    settings: Settings,
    beside: Sequence[Tensor] = (),
) -> Descent:
    """Adam steps on `parameters` (in place) and latents from `z`; `forward` gives images (..., B, C, S, S) and losses (...)."""
    device, steps, gradient_of = z.device, settings.steps, settings.gradient_of
    z = z.clone().requires_grad_()
    groups = [{"params": parameters, "lr": settings.lr}, {"params": [z], "lr": settings.lr_latent}]
    optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999))
    best = kept = torch.empty(0, device=device)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    before = [parameter.detach().clone() for parameter in parameters] if gradient_of == "difference" else []
    for step in range(steps):
        try:
            with autocast(device, settings.precision):
                images, loss = forward(z)
        except BudgetSpent:
            if step == 0:
                raise
            break
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward(inputs=[*parameters, z, *beside])
        for sum_, parameter in zip(total, parameters, strict=True):
            if parameter.grad is not None and (gradient_of == "sum" or (gradient_of == "last" and step == steps - 1)):
                sum_ += parameter.grad
        optimizer.step()
        images, loss = images.detach(), loss.detach()
        if step == 0:
            kept, best = images, loss
        better = loss < best
        kept = torch.where(better.view(*better.shape, 1, 1, 1, 1), images, kept)
        best = torch.where(better, loss, best)
    if before:
        total = [start - parameter.detach() for start, parameter in zip(before, parameters, strict=True)]
    return Descent(kept.to(z.dtype), best, total)


# (teacher, images in [0, 1], labels, learner) -> what a step descends on
InversionLoss = Callable[[Any, Tensor, Tensor, LearnerLogits | None], Tensor]


class GeneratorInverter:
    """Inverts each teacher by a descent on a generator and latents of its own; `start` says where the generator begins.

    together: teachers of one kind that are inverted in one mapped computation, which is for a GPU that small batches leave
    idle: on a CPU it takes 2.6 times as long. It computes in float32 (`UserError`). beside: tensors that `loss` trains
    itself, and that get gradients for it from an inversion of one teacher.
    """

    def __init__(
        self, loss: InversionLoss, settings: Settings = DEFAULTS, together: int = 1, beside: Sequence[Tensor] = ()
    ) -> None:
        if together > 1 and settings.precision != "fp32":  # autocast does not reach into `vmap`
            raise UserError(f"--together {together} computes in fp32: leave out --precision {settings.precision}")
        self.loss, self.settings, self.together, self.beside = loss, settings, together, beside

    def invert(
        self, teachers: Sequence[Any], images_per_class: int, learner: LearnerLogits | None = None
    ) -> tuple[list[PseudoBatch], float]:
        """Pseudo-images of each teacher, and the mean of their lowest losses.

        Each teacher has random numbers of its own, so that several processes can share them; teachers that are inverted
        together share those of the augmentation.
        """
        seeds = torch.randint(2**62, (len(teachers),)).tolist()
        share = distributed.share()
        mine, streams = teachers[share], seeds[share]
        done: dict[int, tuple[PseudoBatch, Descent]] = {}
        for places in alike(mine, self.together):
            with torch.random.fork_rng():
                some = self._invert([mine[p] for p in places], [streams[p] for p in places], images_per_class, learner)
            done |= zip(places, some, strict=True)
        own = [done[place] for place in range(len(mine))]
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
        batch, descent = self._invert_one(teacher, labels, learner)
        self.learn_from([descent])
        return batch, float(descent.loss)

    def _invert(
        self, teachers: Sequence[Any], seeds: Sequence[int], images_per_class: int, learner: LearnerLogits | None
    ) -> list[tuple[PseudoBatch, Descent]]:
        labels = labels_of(teachers[0], images_per_class)
        if len(teachers) == 1:
            torch.manual_seed(seeds[0])
            return [self._invert_one(teachers[0], labels, learner)]
        generators, latents = [], []
        for teacher, seed in zip(teachers, seeds, strict=True):
            torch.manual_seed(seed)
            generators.append(self.start(teacher))
            latents.append(draw_latents(generators[-1], len(labels)))
        stack, labels = Stack(teachers), labels.to(latents[0].device)

        def losses_of(images: Tensor) -> Tensor:
            return stack.losses(lambda teacher, x: self.loss(teacher, x, labels, learner), images)

        descents = descend_together(generators, latents, losses_of, self.settings)
        return [
            (PseudoBatch(descent.images, labels, teacher.class_ids), descent)
            for teacher, descent in zip(teachers, descents, strict=True)
        ]

    def _invert_one(self, teacher: Subject, labels: Tensor, learner: LearnerLogits | None) -> tuple[PseudoBatch, Descent]:
        generator = self.start(teacher)
        labels = labels.to(next(generator.parameters()).device)

        def loss_of(images: Tensor) -> Tensor:
            return self.loss(teacher, images, labels, learner)

        descent = descend(generator, loss_of, len(labels), self.settings, self.beside)
        return PseudoBatch(descent.images, labels, teacher.class_ids), descent


class FreshGenerator(GeneratorInverter):
    """Every teacher is inverted with a newly initialised generator of images of the teacher's own size."""

    def __init__(
        self,
        device: torch.device,
        loss: InversionLoss,
        settings: Settings = DEFAULTS,
        together: int = 1,
        beside: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(loss, settings, together, beside)
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
    add_together_flag(group)


def add_together_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--together", type=cli.count, default=1, help="teachers of one kind inverted in one mapped computation")


def add_precision_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of generator and teachers in inversion")
